from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

from st.data.dataset import DatasetOptions
from st.data.geometry import Fit
from st.data.sample import Media
from st.data.shape import fitting
from st.data.shape.fitting import Fits, Sizes, fit
from st.data.shape.rule import GeometryRule

if TYPE_CHECKING:
    from st.data.shape.fitting import Draw

RULE = GeometryRule(multiple=16)


def bits_of(count: int) -> Draw:
    def draw(name: str, rows: slice) -> NDArray[np.uint64]:
        return np.random.Generator(np.random.Philox(len(name))).integers(0, 2**64, count, np.uint64)[rows]

    return draw


def fits(sizes: list[tuple[int, int]], rule: GeometryRule = RULE, **options: object) -> Fits:
    width, height = np.array(sizes, np.int64).T
    ones = np.ones(len(sizes), np.int64)
    return fit(
        Sizes(width, height, ones, np.zeros(len(sizes)), np.zeros(len(sizes))),
        DatasetOptions.model_validate({"url": "x", **options}),
        rule,
        bits_of(len(sizes)),
    )


def one(width: int, height: int, rule: GeometryRule = RULE, **options: object) -> Fit:
    return fits([(width, height)], rule, **options).at(0)


def summary(made: Fit) -> tuple[tuple[int, int], tuple[int, int], float]:
    return (made.geometry.width, made.geometry.height), (made.resized[1], made.resized[0]), made.aspect


@pytest.mark.parametrize(
    ("size", "resolution", "expected"),
    [
        ((2000, 2000), 1024, ((1024, 1024), (1024, 1024), 1.0)),
        ((2000, 2000), 512, ((512, 512), (512, 512), 1.0)),
        ((1920, 1080), 1024, ((1344, 768), (1365, 768), 1.75)),
        ((1920, 1080), 512, ((704, 384), (704, 396), 1.83)),
        ((1080, 1920), 1024, ((768, 1344), (768, 1365), 0.57)),
        ((1080, 1920), 512, ((384, 704), (396, 704), 0.55)),
        ((3000, 2000), 1024, ((1280, 832), (1280, 853), 1.54)),
        ((3000, 2000), 512, ((640, 448), (672, 448), 1.43)),
        ((1024, 1023), 1024, ((1024, 1024), (1025, 1024), 1.0)),
        ((1024, 1023), 512, ((512, 512), (512, 512), 1.0)),
    ],
)
def test_pixel_area_sizes_are_the_specified_ones(
    size: tuple[int, int], resolution: int, expected: tuple[tuple[int, int], tuple[int, int], float]
) -> None:
    assert summary(one(*size, resolution=resolution)) == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [((1920, 1080), ((896, 512), (910, 512), 1.75)), ((1080, 1920), ((512, 896), (512, 910), 0.57))],
)
def test_pixel_sizes_are_the_specified_ones(
    size: tuple[int, int], expected: tuple[tuple[int, int], tuple[int, int], float]
) -> None:
    assert summary(one(*size, resolution=512, resolution_type="pixel")) == expected


def test_one_megapixel_is_an_edge_of_1024() -> None:
    assert one(1920, 1080, resolution=1.0, resolution_type="area") == one(1920, 1080, resolution=1024)


@pytest.mark.parametrize("align", [16, 64])
@pytest.mark.parametrize("resolution", [256, 1000, 1024])
def test_the_resized_picture_covers_its_target_and_keeps_its_aspect(resolution: int, align: int) -> None:
    rng = np.random.Generator(np.random.Philox(1))
    sizes = [(int(w), int(h)) for w, h in rng.integers(1, 9000, (20_000, 2))]

    made = fits(sizes, resolution=resolution, align=align)

    width, height = np.array(sizes).T
    assert (made.resized_width >= made.width).all() and (made.resized_height >= made.height).all()
    tight = (made.resized_width == made.width) | (made.resized_height == made.height)
    assert tight.all()
    off = np.abs(made.resized_width * height - made.resized_height * width) / np.maximum(width, height)
    assert (off < 1).all()
    assert (made.width % align == 0).all() and (made.height % align == 0).all()


def test_a_size_does_not_depend_on_the_rest_of_the_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [(500 + 7 * n, 900 - 5 * n) for n in range(100)]
    together = fits(sizes)
    monkeypatch.setattr(fitting, "_ROWS", 7)

    in_pieces = fits(sizes)

    assert [in_pieces.at(row) for row in range(100)] == [together.at(row) for row in range(100)]
    assert [one(*size) for size in sizes] == [together.at(row) for row in range(100)]


def test_a_size_within_the_rounding_of_a_square_is_the_square() -> None:
    made = one(2056, 2048, GeometryRule(multiple=8), resolution=2048, align=8)

    assert summary(made)[0] == (2048, 2048)


def test_square_crops_are_square() -> None:
    made = one(1920, 1080, crop=True, crop_style="center")

    assert summary(made) == ((1024, 1024), (1820, 1024), 1.0)
    assert made.crop == (0, 398)


def test_a_corner_crop_keeps_the_top_left() -> None:
    assert one(1920, 1080, crop=True, crop_style="corner").crop == (0, 0)


def test_random_crops_lie_inside_and_reach_both_ends() -> None:
    made = fits([(1100, 1024)] * 5000, crop=True)

    assert made.left.min() == 0 and made.left.max() == 76
    assert (made.top == 0).all()


def test_the_closest_aspect_is_chosen() -> None:
    options = {"crop": True, "crop_aspect": "closest", "crop_aspects": [1.0, 0.5, 1.5]}

    aspects = [one(*size, **options).aspect for size in [(1000, 1000), (1000, 1900), (3000, 2000)]]

    assert aspects == [1.0, 0.48, 1.54]


def test_random_aspects_are_drawn_by_their_weights() -> None:
    aspects = [{"aspect": 1.0, "weight": 3}, {"aspect": 2.0, "weight": 1}]

    made = fits([(2000, 2000)] * 10_000, crop=True, crop_aspect="random", crop_aspects=aspects)

    assert (made.width == made.height).mean() == pytest.approx(0.75, abs=0.02)


def test_aspects_that_would_enlarge_too_much_are_not_candidates() -> None:
    options = {"crop": True, "crop_aspect": "closest", "crop_aspects": [1.0, 2.0], "max_upscale": 0.0}

    made = fits([(1100, 1030), (1000, 1000)], **options)

    assert made.reason.tolist() == [fitting.KEPT, fitting.TOO_FEW_PIXELS]


def test_large_pictures_are_cropped_out_of_the_downsampled_picture() -> None:
    options = {"crop": True, "crop_style": "center", "resolution": 512, "maximum_size": 2000, "downsample_to": 1024}

    assert summary(one(4000, 4000, **options)) == ((512, 512), (1024, 1024), 1.0)
    assert summary(one(1800, 1800, **options)) == ((512, 512), (512, 512), 1.0)


def test_a_limit_of_the_model_is_kept() -> None:
    made = fits([(1000 + n, 3000 - n) for n in range(2000)], GeometryRule(max_pixels=768 * 768), resolution=1024)

    assert (made.width.astype(int) * made.height <= 768 * 768).all()
    assert (made.width % 64 == 0).all() and (made.height % 64 == 0).all()


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"minimum_size": 500, "resolution_type": "pixel"}, [True, True, False]),
        ({"minimum_size": 500}, [True, True, True]),
        ({"minimum_size": 500, "crop": True}, [True, True, False]),
        ({"minimum_size": 0.5, "resolution": 1.0, "resolution_type": "area"}, [True, False, False]),
    ],
)
def test_small_pictures_are_left_out_by_the_unit_of_the_options(options: dict[str, object], kept: list[bool]) -> None:
    made = fits([(1000, 1000), (500, 500), (700, 400)], **options)

    assert (made.reason == fitting.KEPT).tolist() == kept


def test_enlarging_is_limited_where_asked() -> None:
    made = fits([(1000, 1000), (800, 800)], max_upscale=0.1)

    assert made.reason.tolist() == [fitting.KEPT, fitting.TOO_FEW_PIXELS]


def test_buckets_outside_the_aspects_are_left_out() -> None:
    made = fits([(1000, 1000), (3000, 1000), (1000, 3000)], min_aspect=0.5, max_aspect=2.0)

    assert made.reason.tolist() == [fitting.KEPT, fitting.WRONG_ASPECT, fitting.WRONG_ASPECT]


def test_clips_and_sounds_get_lengths_that_the_rule_accepts() -> None:
    lengths = (np.array([37, 4, 1]), np.array([0.0, 0.0, 7.9]), np.array([24.0, 24.0, 0.0]))
    sizes = Sizes(np.array([640, 640, 0]), np.array([480, 480, 0]), *lengths)
    options = DatasetOptions(url="x", num_frames=20)

    made = fit(sizes, options, GeometryRule(frames_modulus=8, frames_remainder=5), bits_of(3))

    assert [made.at(row).geometry.frames for row in range(3)] == [13, 0, 0]
    assert made.reason.tolist() == [fitting.KEPT, fitting.TOO_SHORT, fitting.KEPT]
    assert made.at(2).geometry.seconds == 6.0 and made.at(2).geometry.height == 0


def test_the_rule_for_pictures_of_a_run_agrees_on_squares() -> None:
    assert RULE.nearest(Media("image", 2000, 2000), 1024 * 1024) == one(2000, 2000).geometry


def test_slivers_that_would_be_enlarged_to_gigabytes_are_left_out() -> None:
    made = fits([(1, 60_000), (60_000, 1), (64, 64)], resolution=512, resolution_type="pixel")

    assert made.reason.tolist() == [fitting.TOO_NARROW, fitting.TOO_NARROW, fitting.KEPT]


@pytest.mark.parametrize("align", [16, 64])
def test_the_longest_edge_of_the_model_is_kept(align: int) -> None:
    made = fits([(100 + n, 9000 - n) for n in range(500)], GeometryRule(max_edge=1000), resolution=512, align=align)

    assert np.maximum(made.width, made.height).max() <= 1000
    assert (made.width % align == 0).all() and (made.height % align == 0).all()
