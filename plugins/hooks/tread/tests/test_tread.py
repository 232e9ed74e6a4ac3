"""Tokens that are dropped rejoin, those of masks stay, and the choice is the same wherever the run goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from st import Batch, BlockMiddleware, Geometry, Noised, StError
from st.model.inside.blocks import BlockStack
from st.model.inside.claims import check_claims
from st.randomness import keyed
from st.testing import (
    BlockMiddlewareTests,
    HookPluginTests,
    TinyFamily,
    TinyRunner,
    example_batch,
    example_noised,
)
from st.testing.subjects.routes import Tap
from st_tread import Route, TreadOptions
from st_tread.options import Span, problems, spans
from st_tread.selection import Selector, kept, masked_tokens
from st_tread.technique import TokenRoute

INNER = "[tread]\nfirst = 1\nlast = -1\n"
CPU = torch.device("cpu")


def a_selector(family: TinyFamily, batch: Batch | None, importance: float = 0.0, samples: int = 2) -> Selector:
    return Selector(42, samples, importance, family.tokens, batch)


def a_route(first: int = 1, last: int = 2, drop: float = 0.5) -> Span:
    return Span(first, last, drop, ("first", "last"))


def a_batch(latents: torch.Tensor, mask: torch.Tensor | None = None, first: int = 0) -> Batch:
    indices = tuple(range(first, first + len(latents)))
    return Batch(tuple(map(str, indices)), indices, "a", latents, {}, mask)


@pytest.fixture
def family(tmp_path: Path) -> TinyFamily:
    return TinyFamily.tiny(tmp_path / "tiny")


@pytest.fixture
def batch(family: TinyFamily) -> Batch:
    return example_batch(family, Geometry(64, 64))


@pytest.fixture
def noised(family: TinyFamily, batch: Batch) -> Noised:
    return example_noised(family, batch)


class TestPlugin(HookPluginTests):
    plugin = "tread"
    settings = INNER


class TestRoute(BlockMiddlewareTests):
    @pytest.fixture
    def build(self, family, batch):
        return lambda: TokenRoute(a_route(), a_selector(family, batch))


class TestRouteByImportance(BlockMiddlewareTests):
    @pytest.fixture
    def build(self, family, batch):
        mask = torch.zeros(2, 1, 8, 8)
        mask[0, 0, 2:5, 1:4] = 1.0
        return lambda: TokenRoute(a_route(0, 1), a_selector(family, replace(batch, mask=mask), importance=0.7))


def gradients(family: TinyFamily, noised: Noised, batch: Batch, around: list[BlockMiddleware]) -> list[torch.Tensor]:
    denoiser = family.load_denoiser(CPU, torch.float32)
    with BlockStack(denoiser, family.blocks(), around):
        prediction = family.predict(denoiser, noised, batch)
    torch.autograd.backward(prediction.square().sum())
    return [prediction.detach(), *(p.grad for p in denoiser.parameters() if p.grad is not None)]


def test_dropping_no_tokens_changes_nothing(family, batch, noised):
    plain = gradients(family, noised, batch, [])
    routed = gradients(family, noised, batch, [TokenRoute(a_route(drop=0.0), a_selector(family, batch))])

    assert [torch.equal(a, b) for a, b in zip(plain, routed, strict=True)] == [True] * len(plain)


def test_dropped_tokens_rejoin_unchanged(family, batch, noised):
    tap, select = Tap(), a_selector(family, batch)
    with_tap = [tap, TokenRoute(a_route(1, 1), select)]
    keep = select(torch.zeros(2, 64, 1), 0.5, "0")

    gradients(family, noised, batch, with_tap)

    dropped = [token for token in range(64) if token not in keep.tolist()]
    assert len(keep) == 32
    assert torch.equal(tap.inputs[2][:, dropped], tap.inputs[1][:, dropped])
    assert not torch.equal(tap.inputs[2][:, keep], tap.inputs[1][:, keep])


def test_outside_of_a_step_every_token_is_there(family, batch, noised):
    tap = Tap()

    gradients(family, noised, batch, [tap, TokenRoute(a_route(), a_selector(family, None))])

    assert {tokens.shape[1] for tokens in tap.outputs.values()} == {64}


def test_two_routes_follow_each_other(family, batch, noised):
    tap, select = Tap(), a_selector(family, batch)
    first, second = TokenRoute(a_route(0, 1, 0.5), select, "0"), TokenRoute(a_route(2, 2, 0.25), select, "1")

    gradients(family, noised, batch, [tap, first, second])

    assert {index: tokens.shape[1] for index, tokens in tap.outputs.items()} == {0: 32, 1: 64, 2: 64}


def kept_plainly(
    chance: list[float], sizes: list[list[float]], share: float, drop: float, forced: set[int]
) -> list[int]:
    """The definition with nothing but loops."""
    count = len(chance)
    mixed = []
    for token in range(count):
        stretched = [(row[token] - min(row)) / (max(row) - min(row)) for row in sizes]
        mixed.append((1 - share) * chance[token] + share * sum(stretched) / len(stretched))
    order = sorted(range(count), key=lambda token: (-1.0 if token in forced else mixed[token], token))
    return sorted(order[: max(count - round(count * drop), len(forced))])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("drop", [0.25, 0.5, 0.9])
def test_tokens_are_kept_as_defined(family, share, drop):
    tokens = torch.randn(2, 64, 5, generator=torch.Generator().manual_seed(3))
    mask = torch.zeros(2, 1, 8, 8)
    mask[0, 0, 0, :6] = 1.0
    mask[1, 0, 1, :6] = 0.9
    mask[1, 0, 2, :6] = 0.4
    select = a_selector(family, a_batch(torch.zeros(2, 192, 8, 8), mask), importance=share)
    chance = torch.rand(64, generator=torch.Generator().manual_seed(keyed(42, 0, "tread/0"))).tolist()

    actual = select(tokens, drop, "0").tolist()

    forced = {row * 8 + column for row in (0, 1) for column in range(6)}
    sizes = [[sum(abs(value) for value in token) for token in row] for row in tokens.tolist()]
    assert actual == kept_plainly(chance, sizes, share, drop, forced)


def test_more_forced_tokens_than_the_share_all_stay():
    forced = torch.zeros(1024, dtype=torch.bool)
    forced[200:800] = True
    chance = torch.rand(1024, generator=torch.Generator().manual_seed(0))

    assert kept(chance, 0.5, forced=forced).tolist() == list(range(200, 800))
    assert len(kept(chance, 0.5)) == 512


def test_a_mask_is_found_in_patches_and_frames():
    mask = torch.zeros(1, 1, 4, 6)
    mask[0, 0, 3, 2] = 1.0
    picture, clip = torch.zeros(1, 16, 4, 6), torch.zeros(1, 16, 3, 4, 6)

    assert masked_tokens(a_batch(picture, mask), 24).nonzero().flatten().tolist() == [20]
    assert masked_tokens(a_batch(picture, mask), 6).nonzero().flatten().tolist() == [4]
    assert masked_tokens(a_batch(clip, mask), 18).nonzero().flatten().tolist() == [4, 10, 16]


def test_tokens_that_are_no_grid_are_refused_with_a_mask():
    with pytest.raises(StError, match="which tokens lie under a mask"):
        masked_tokens(a_batch(torch.zeros(1, 16, 4, 6), torch.zeros(1, 1, 4, 6)), 7)


def test_tokens_behind_the_picture_are_not_under_its_mask(family):
    select = a_selector(family, a_batch(torch.zeros(1, 192, 2, 2), torch.ones(1, 1, 2, 2)))

    assert select(torch.zeros(1, 8, 1), 0.5, "0").tolist() == [0, 1, 2, 3]


def test_samples_of_one_step_share_a_choice_and_steps_do_not(family):
    def choice(first: int, name: str = "0") -> list[int]:
        chosen = a_selector(family, a_batch(torch.zeros(1, 192, 8, 8), first=first), samples=4)
        return chosen(torch.zeros(1, 64, 1), 0.5, name).tolist()

    assert choice(4) == choice(5) == choice(7)
    assert choice(3) != choice(4) != choice(8)
    assert choice(4, "0") != choice(4, "1")


def test_negative_numbers_count_from_the_end():
    assert spans(TreadOptions(), 57) == (Span(2, 55, 0.5, ("first", "last")),)
    (route,) = spans(TreadOptions(first=-4, last=-1), 10)
    assert (route.first, route.last) == (6, 9)


def test_a_route_outside_the_blocks_is_refused_in_words():
    (problem,) = problems(spans(TreadOptions(last=60), 57), 57)

    assert problem.where == "tread.last"
    assert problem.what == "tread.last is block 60, but this denoiser has blocks 0-56."
    assert problem.fix == "Set it to 0 to 56, or -1 to -57."


def test_overlapping_routes_are_refused_in_words():
    options = TreadOptions(routes=(Route(first=8, last=-2), Route(first=2, last=8)))

    (problem,) = problems(spans(options, 20), 20)

    assert problem.where == "tread.routes.0.first"
    assert problem.what == "tread's routes overlap: blocks 2-8 and 8-18."
    assert problem.fix == "Set tread.routes.1.last below 8 or tread.routes.0.first above 8."


def test_a_route_that_ends_before_it_begins_is_refused():
    (problem,) = problems(spans(TreadOptions(), 3), 3)

    assert problem.what == "tread.first is block 2, after tread.last, block 1 of 0-2."
    with pytest.raises(ValidationError, match="first = 5 comes after last = 3"):
        TreadOptions(first=5, last=3)


def test_one_route_and_several_are_not_given_at_once():
    with pytest.raises(ValidationError, match="these have no effect: drop;"):
        TreadOptions(drop=0.3, routes=(Route(),))


def test_a_reader_inside_a_route_is_refused_with_the_settings(family):
    class Reader(Tap):
        def claims(self, count):
            return replace(super().claims(count), reads_all_tokens=frozenset({8}), settings=("block",))

    route = TokenRoute(a_route(2, 24), a_selector(family, None))

    (problem,) = check_claims([("reader", Reader()), ("tread", route)], 30)

    assert problem.fix == "Set reader.block below 2 or above 24, or move tread.first / tread.last."


def as_floats(weights: dict[str, bytes]) -> torch.Tensor:
    return torch.cat([torch.frombuffer(bytearray(weights[name]), dtype=torch.float32) for name in sorted(weights)])


def test_a_run_stops_with_the_reason(tiny_run: TinyRunner) -> None:
    with pytest.raises(AssertionError, match=r"tread\.last is block 9, but this denoiser has blocks 0-2\."):
        tiny_run(plugins=["tread"], text="[tread]\nfirst = 1\nlast = 9")


def test_a_route_trains_something_else(tiny_run: TinyRunner) -> None:
    assert tiny_run(plugins=["tread"], text=INNER).weights() != tiny_run().weights()


def test_microbatches_choose_as_one_batch_would(tiny_run: TinyRunner) -> None:
    whole = as_floats(tiny_run(plugins=["tread"], text=INNER, batch=2).weights())
    parts = as_floats(tiny_run(plugins=["tread"], text=INNER, batch=1, accumulate=2).weights())

    # Sums in another order, through Adam, which makes much of little.
    assert (whole - parts).abs().max() <= 1e-6


def test_recomputation_and_routes_resume_exactly(tiny_run: TinyRunner) -> None:
    text = (
        "[[tread.routes]]\nfirst = 0\nlast = 1\n[[tread.routes]]\nfirst = 2\nlast = -1\ndrop = 0.3\n"
        "[recompute]\nevery = 1\n"
    )
    straight = tiny_run(plugins=["tread"], text=text, steps=4)
    first = tiny_run(plugins=["tread"], text=text, steps=2)

    assert tiny_run(plugins=["tread"], text=text, steps=4, resume=first).weights() == straight.weights()
