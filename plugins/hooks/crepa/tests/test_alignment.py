"""The loss is the papers' formulas, worked out number by number."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from st import StError
from st_crepa import CrepaOptions
from st_crepa.alignment import Projector, align, as_grid, evenly, grid_of, resized


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cosine(one: list[float], other: list[float]) -> float:
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    return dot / math.sqrt(sum(a * a for a in one)) / math.sqrt(sum(b * b for b in other))


def by_hand(p: torch.Tensor, y: torch.Tensor, options: CrepaOptions) -> float:
    """The loss of (B, F, N, E) tokens and features on one grid, in loops over plain numbers."""
    scores, furthest = [], options.adjacent_distance
    for clip_p, clip_y in zip(p.tolist(), y.tolist(), strict=True):
        sums = []
        for frame in range(len(clip_p)):
            score, weights = 0.0, 0.0
            for other in range(len(clip_y)):
                away = abs(frame - other)
                near = 0 < away <= furthest if options.cumulative_neighbors else 0 < away == furthest
                if away and not near:
                    continue
                weight = math.exp(-away / options.adjacent_tau) if away else 1.0
                pairs = zip(clip_p[frame], clip_y[other], strict=True)
                score += weight * sum(cosine(a, b) for a, b in pairs) / len(clip_p[frame])
                weights += weight
            sums.append(score / weights if options.normalize_neighbour_sum else score)
        scores.append(sum(sums) / (len(sums) if options.normalize_by_frames else 1))
    return -sum(scores) / len(scores)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"adjacent_distance": 0},
        {"adjacent_distance": 2, "adjacent_tau": 0.7},
        {"adjacent_distance": 3, "cumulative_neighbors": True, "adjacent_tau": 2.0},
        {"adjacent_distance": 2, "cumulative_neighbors": True, "normalize_neighbour_sum": True},
        {"adjacent_distance": 9, "cumulative_neighbors": True},
        {"normalize_by_frames": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_the_loss_of_clips_is_the_formula(given: dict[str, Any], frames: int) -> None:
    options = CrepaOptions(**given)
    p, y = seeded(2, frames, 2, 3, 4), seeded(2, frames, 2, 3, 4, seed=1)

    found = align(p, y, options)

    assert float(found.loss) == pytest.approx(by_hand(p.flatten(2, 3), y.flatten(2, 3), options), abs=1e-6)


def test_a_picture_is_repa() -> None:
    p, y = seeded(3, 1, 4, 4, 8), seeded(3, 1, 4, 4, 8, seed=1)

    found = align(p, y, CrepaOptions())

    plain = [cosine(a, b) for a, b in zip(p.reshape(-1, 8).tolist(), y.reshape(-1, 8).tolist(), strict=True)]
    assert float(found.loss) == pytest.approx(-sum(plain) / len(plain), abs=1e-6)
    assert float(found.similarity) == pytest.approx(sum(plain) / len(plain), abs=1e-6)


def test_the_smaller_grid_and_the_frames_of_the_tokens_count() -> None:
    p, y = seeded(1, 3, 6, 4, 5), seeded(1, 9, 3, 3, 5, seed=1)
    options = CrepaOptions()

    found = align(p, y, options)

    moved = torch.nn.functional.interpolate(p[0].permute(0, 3, 1, 2), (3, 3), mode="bilinear")
    on_grid = moved.permute(0, 2, 3, 1).flatten(1, 2)[None]
    expected = by_hand(on_grid, y[:, [0, 4, 8]].flatten(2, 3), options)
    assert float(found.loss) == pytest.approx(expected, abs=1e-6)


def test_without_a_place_the_means_of_frames_are_compared() -> None:
    p, y, options = seeded(2, 3, 4, 5, 6), seeded(2, 3, 2, 2, 6, seed=1), CrepaOptions(spatial_align=False)

    found = align(p, y, options)

    expected = by_hand(p.flatten(2, 3).mean(2, keepdim=True), y.flatten(2, 3).mean(2, keepdim=True), options)
    assert float(found.loss) == pytest.approx(expected, abs=1e-6)


def test_the_manifold_is_compared_too() -> None:
    p, y = seeded(1, 1, 2, 2, 3), seeded(1, 1, 2, 2, 3, seed=1)
    one, other = p.reshape(4, 3).tolist(), y.reshape(4, 3).tolist()
    difference = [(cosine(other[a], other[b]) - cosine(one[a], one[b])) ** 2 for a in range(4) for b in range(4)]

    plain = float(align(p, y, CrepaOptions()).loss)
    found = float(align(p, y, CrepaOptions(manifold_weight=3.0)).loss)

    assert found - plain == pytest.approx(3 * sum(difference) / 16, abs=1e-6)


def test_features_are_normed_over_each_frame() -> None:
    p, y, options = seeded(2, 2, 3, 3, 4), seeded(2, 2, 3, 3, 4, seed=1), CrepaOptions(spatial_norm=0.6)
    rows = y.flatten(2, 3)
    normed = (rows - 0.6 * rows.mean(2, keepdim=True)) / (rows.std(2, keepdim=True) + 1e-6)

    assert float(align(p, y, options).loss) == pytest.approx(by_hand(p.flatten(2, 3), normed, options), abs=1e-6)


@pytest.mark.parametrize(("before", "after"), [((5, 7), (3, 3)), ((2, 3), (7, 4)), ((4, 4), (4, 2))])
def test_grids_are_interpolated_as_torch_does(before: tuple[int, int], after: tuple[int, int]) -> None:
    grids = seeded(2, 3, *before, 4)

    found = resized(grids, *after)

    expected = torch.nn.functional.interpolate(grids.flatten(0, 1).permute(0, 3, 1, 2), after, mode="bilinear")
    assert torch.allclose(found.flatten(0, 1).permute(0, 3, 1, 2), expected, atol=1e-6)


@pytest.mark.parametrize("kernel", [1, 3])
def test_the_projector_is_a_norm_and_a_layer(kernel: int) -> None:
    projector, tokens = Projector(4, 6, kernel, seed=3), seeded(2, 3, 2, 5, 4).to(torch.bfloat16)

    found = projector(tokens)

    mean, spread = tokens.float().mean(-1, keepdim=True), tokens.float().var(-1, unbiased=False, keepdim=True)
    normed = (tokens.float() - mean) / (spread + 1e-5).sqrt()
    weight, bias = projector.layer.weight, projector.layer.bias
    if kernel == 1:
        expected = normed @ weight.T + bias
    else:
        padded = torch.nn.functional.pad(normed, (0, 0, 1, 1, 1, 1))
        patches = padded.unfold(2, 3, 1).unfold(3, 3, 1)
        expected = torch.einsum("bfhwcij,ecij->bfhwe", patches, weight) + bias
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, atol=1e-5)


def test_the_same_seed_gives_the_same_projector_whatever_was_drawn_before() -> None:
    first = Projector(4, 6, 1, seed=2**63 + 1)
    torch.rand(3)

    assert torch.equal(first.layer.weight, Projector(4, 6, 1, seed=2**63 + 1).layer.weight)


def test_frames_are_evenly_spaced() -> None:
    assert evenly(81, 21) == list(range(0, 81, 4))
    assert evenly(5, 5) == [0, 1, 2, 3, 4]
    assert evenly(1, 3) == [0, 0, 0]
    assert evenly(9, 1) == [0]


def test_tokens_find_their_grid() -> None:
    assert grid_of(4096, 1, 128, 128) == (1, 64, 64)
    assert grid_of(21 * 30 * 52, 21, 60, 104) == (21, 30, 52)
    assert as_grid(torch.zeros(1, 30, 2), torch.zeros(1, 4, 4, 6), 24).shape == (1, 1, 4, 6, 2)
    with pytest.raises(StError, match="cannot tell where the tokens of a block lie"):
        grid_of(7, 1, 4, 6)


@pytest.mark.parametrize(
    ("given", "weights"),
    [
        ({}, [0.5, 0.5, 0.5, 0.5, 0.5, 0.5]),
        ({"warmup_steps": 4}, [0.0, 0.125, 0.25, 0.375, 0.5, 0.5]),
        ({"scheduler": "linear", "decay_steps": 4, "weight_end": 0.1}, [0.5, 0.4, 0.3, 0.2, 0.1, 0.1]),
        (
            {"scheduler": "cosine", "decay_steps": 4},
            [0.5, 0.25 + 0.125 * 2**0.5, 0.25, 0.25 - 0.125 * 2**0.5, 0.0, 0.0],
        ),
        ({"scheduler": "polynomial", "power": 2, "decay_steps": 2}, [0.5, 0.125, 0.0, 0.0, 0.0, 0.0]),
        ({"scheduler": "linear"}, [0.5, 0.45, 0.4, 0.35, 0.3, 0.25]),
        ({"start_step": 2, "warmup_steps": 2, "cutoff_step": 5}, [0.0, 0.0, 0.0, 0.25, 0.5, None]),
    ],
    ids=str,
)
def test_the_weight_follows_its_schedule(given: dict[str, Any], weights: list[float | None]) -> None:
    found = [CrepaOptions(**given).weight_at(step, 10) for step in range(6)]

    assert found == [weight if weight is None else pytest.approx(weight) for weight in weights]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"feature_source": "backbone"}, "needs teacher_block_index"),
        ({"teacher_block_index": 12}, "have no effect: teacher_block_index"),
        ({"feature_source": "backbone", "teacher_block_index": 9, "model": "x"}, "have no effect: model"),
        ({"weight_end": 0.1}, "have no effect: weight_end"),
        ({"scheduler": "linear", "power": 2}, "have no effect: power"),
        ({"threshold_mode": "recoverable"}, "with no similarity_threshold, these have no effect: threshold_mode"),
        ({"adjacent_distance": 0, "adjacent_tau": 2}, "have no effect: adjacent_tau"),
        ({"spatial_align": False, "manifold_weight": 3}, "have no effect: manifold_weight"),
        ({"projector_kernel_size": 2}, "must be odd"),
        ({"start_step": 9, "cutoff_step": 9}, "comes before start_step"),
    ],
    ids=str,
)
def test_options_without_effect_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        CrepaOptions(**given)
