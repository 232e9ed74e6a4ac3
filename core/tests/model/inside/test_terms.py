"""What blocks give beside their tokens: once for each pass, with its gradient, whatever is computed again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from st import Geometry, ModuleTap, StError
from st.model.inside.blocks import BlockStack
from st.model.inside.recompute import Recompute, RecomputeOptions
from st.model.inside.terms import Terms
from st.testing import TinyFamily, example_batch, example_noised

TAP = ModuleTap("gate", "feed.2", lambda passed: passed.mean(1).var())


@pytest.fixture
def family(tmp_path: Path) -> TinyFamily:
    return TinyFamily.tiny(tmp_path / "tiny")


def learnt(family: TinyFamily, every: int) -> tuple[dict[int, int], dict[str, Tensor]]:
    """How many terms each block gave, and the gradients of their sum alone."""
    denoiser, terms = family.load_denoiser(torch.device("cpu"), torch.float32).train(), Terms()
    batch = example_batch(family, Geometry(64, 64))
    middleware = [TAP, *([Recompute(RecomputeOptions(every=every))] if every else [])]
    with BlockStack(denoiser, family.blocks(), middleware, terms=terms):
        with terms.reading() as found:
            prediction = family.predict(denoiser, example_noised(family, batch), batch)
        gates = [gate for passes in found["gate"].values() for gate in passes]
        torch.autograd.backward(torch.stack(gates).sum() + 0.1 * prediction.square().mean())
    gradients = {name: one.grad for name, one in denoiser.named_parameters() if one.grad is not None}
    return {index: len(passes) for index, passes in found["gate"].items()}, gradients


@pytest.mark.parametrize("every", [1, 2])
def test_terms_of_recomputed_blocks_are_given_once_with_the_same_gradients(family: TinyFamily, every: int) -> None:
    given, expected = learnt(family, 0)

    again, actual = learnt(family, every)

    assert given == again == {0: 1, 1: 1, 2: 1}
    assert actual.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []


def test_the_innermost_reader_has_what_is_given(family: TinyFamily) -> None:
    denoiser, terms = family.load_denoiser(torch.device("cpu"), torch.float32), Terms()
    batch = example_batch(family, Geometry(64, 64))
    noised = example_noised(family, batch)

    with BlockStack(denoiser, family.blocks(), [TAP], terms=terms), terms.reading() as outer:
        family.predict(denoiser, noised, batch)
        with terms.reading() as inner:
            family.predict(denoiser, noised, batch)
            family.predict(denoiser, noised, batch)

    assert {index: len(passes) for index, passes in outer["gate"].items()} == {0: 1, 1: 1, 2: 1}
    assert {index: len(passes) for index, passes in inner["gate"].items()} == {0: 2, 1: 2, 2: 2}


def test_a_module_that_is_not_called_is_said(family: TinyFamily) -> None:
    denoiser = family.load_denoiser(torch.device("cpu"), torch.float32)
    denoiser.blocks[1].register_module("idle", torch.nn.ReLU())
    batch = example_batch(family, Geometry(64, 64))
    tap = ModuleTap("gate", "idle", lambda passed: passed)

    with BlockStack(denoiser, family.blocks(), [tap]), pytest.raises(StError, match="block 1 was not called"):
        family.predict(denoiser, example_noised(family, batch), batch)
