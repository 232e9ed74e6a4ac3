import pytest

from st.data.geometry import Geometry
from st.data.sample import Media
from st.data.shape.rule import GeometryRule
from st.errors import StError


@pytest.mark.parametrize("size", [(512, 512), (768, 1344), (640, 448), (64, 2048)])
def test_a_size_that_the_rule_made_is_returned_unchanged(size: tuple[int, int]) -> None:
    rule = GeometryRule(multiple=16)
    made = rule.nearest(Media("image", *size), size[0] * size[1])

    again = rule.nearest(Media("image", made.height, made.width), made.height * made.width)

    assert again == made
    assert rule.accepts(made)


def test_a_limit_on_pixels_is_kept() -> None:
    rule = GeometryRule(multiple=16, max_pixels=512 * 512)

    made = rule.nearest(Media("image", 1000, 3000), 1024 * 1024)

    assert made.height * made.width <= 512 * 512
    assert rule.accepts(made)


@pytest.mark.parametrize("size", [(64, 6000), (6000, 64), (1000, 3000), (500, 500)])
def test_the_longest_edge_is_kept(size: tuple[int, int]) -> None:
    rule = GeometryRule(multiple=16, max_edge=500)

    made = rule.nearest(Media("image", *size), 512 * 512)

    assert max(made.height, made.width) <= 496
    assert rule.accepts(made) and not rule.accepts(Geometry(16, 512))
    assert rule.nearest(Media("image", made.height, made.width), made.height * made.width) == made


def test_an_alignment_above_the_longest_edge_is_refused() -> None:
    rule = GeometryRule(multiple=16, max_edge=50)

    with pytest.raises(StError, match="align = 64") as caught:
        rule.alignment(64)

    assert (caught.value.fix, rule.alignment(0)) == ("Set align = 48 or less.", 48)


@pytest.mark.parametrize(
    ("rule", "available", "expected"),
    [
        (GeometryRule(), 37, 37),
        (GeometryRule(frames_modulus=8), 37, 33),
        (GeometryRule(frames_modulus=4), 4, 1),
        (GeometryRule(frames_modulus=17, frames_remainder=5), 40, 39),
        (GeometryRule(frames_modulus=17, frames_remainder=5), 4, 0),
    ],
)
def test_frames_are_the_most_that_the_rule_accepts(rule: GeometryRule, available: int, expected: int) -> None:
    assert rule.frames(available) == expected


def test_a_size_off_the_multiple_is_not_accepted() -> None:
    assert not GeometryRule(multiple=16).accepts(Geometry(512, 520))


@pytest.mark.parametrize(("multiple", "expected"), [(8, 64), (16, 64), (28, 84), (128, 128)])
def test_the_usual_alignment_is_a_multiple_that_the_model_takes(multiple: int, expected: int) -> None:
    assert GeometryRule(multiple=multiple).alignment(0) == expected


def test_an_alignment_that_the_model_does_not_take_is_refused_with_the_next_one() -> None:
    with pytest.raises(StError, match="align = 24") as caught:
        GeometryRule(multiple=16).alignment(24)

    assert caught.value.fix == "Set align = 32."
