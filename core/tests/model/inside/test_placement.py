"""Blocks whose weights come and go: the same gradients, and each block there exactly while it computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from st import BlockCall, BlockResult, Claims, Geometry, Layer, Proceed
from st.model.inside.blocks import BlockStack
from st.model.inside.placement import settle, staying
from st.model.inside.recompute import Recompute, RecomputeOptions
from st.testing import TinyFamily, example_batch, example_noised
from st.testing.subjects.built_in import built_in_adapter
from st.testing.subjects.placement import Away

CPU = torch.device("cpu")


class Reads:
    """Its loss reaches a block in the middle before the block's own output does."""

    layer = Layer.TAP

    def __init__(self) -> None:
        self.tokens: dict[int, Tensor] = {}

    def claims(self, count: int) -> Claims:
        return Claims()

    def __call__(self, call: BlockCall, proceed: Proceed) -> BlockResult:
        result = proceed(call)
        self.tokens[call.index] = result.tokens
        return result


@pytest.fixture
def family(tmp_path: Path) -> TinyFamily:
    return TinyFamily.tiny(tmp_path / "tiny")


def prepared(family: TinyFamily) -> nn.Module:
    """Low-rank updates learn, and all else is frozen but for the layer before the blocks."""
    denoiser = family.load_denoiser(CPU, torch.float32).requires_grad_(False)
    torch.manual_seed(0)
    built_in_adapter("lora").attach(denoiser, family.adapter_targets())
    for name, parameter in denoiser.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
        if name.startswith("image_in"):
            parameter.requires_grad_(True)
    return denoiser.train()


def gradients(
    family: TinyFamily, denoiser: nn.Module, middleware: list[Any], placement: Any = None, *, tapped: int | None = None
) -> dict[str, Tensor]:
    batch = example_batch(family, Geometry(64, 64))
    tap = Reads()
    if placement is not None:
        settle(denoiser, family.blocks(), placement, CPU)
    with BlockStack(denoiser, family.blocks(), [*middleware, tap], placement):
        prediction = family.predict(denoiser, example_noised(family, batch), batch)
        loss = prediction.square().mean() if tapped is None else tap.tokens[tapped].square().mean()
        torch.autograd.backward(loss)
    return {name: one.grad.clone() for name, one in denoiser.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("every", [0, 1, 2], ids=["kept", "recomputed", "second"])
@pytest.mark.parametrize("tapped", [None, 1], ids=["prediction", "tap"])
def test_gradients_are_those_of_blocks_that_stay(family: TinyFamily, every: int, tapped: int | None) -> None:
    middleware = [Recompute(RecomputeOptions(every=every))] if every else []
    expected = gradients(family, prepared(family), middleware, tapped=tapped)

    actual = gradients(family, prepared(family), middleware, Away(), tapped=tapped)

    assert actual.keys() == expected.keys() != set()
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []


@pytest.mark.parametrize("every", [0, 1], ids=["kept", "recomputed"])
def test_one_block_is_there_at_a_time_and_is_told_which_way(family: TinyFamily, every: int) -> None:
    away = Away()

    gradients(family, prepared(family), [Recompute(RecomputeOptions(every=1))] if every else [], away)

    forward = [(index, "forward", comes) for index in (0, 1, 2) for comes in (True, False)]
    backward = [(index, "backward", comes) for index in (2, 1, 0) for comes in (True, False)]
    assert away.calls == [*forward, *backward]


def test_two_predictions_before_one_backward_go_back_through_both(family: TinyFamily) -> None:
    batch = example_batch(family, Geometry(64, 64))
    noised = example_noised(family, batch)

    def both(denoiser: nn.Module) -> dict[str, Tensor]:
        first, second = (family.predict(denoiser, noised, batch) for _ in range(2))
        torch.autograd.backward((first * second.roll(1)).mean())
        return {name: one.grad.clone() for name, one in denoiser.named_parameters() if one.grad is not None}

    expected = both(prepared(family))
    denoiser, away = prepared(family), Away()
    settle(denoiser, family.blocks(), away, CPU)
    with BlockStack(denoiser, family.blocks(), [Recompute(RecomputeOptions(every=1))], away):
        actual = both(denoiser)

    assert [name for name in expected if not torch.allclose(actual[name], expected[name], rtol=1e-5, atol=1e-8)] == []


def test_what_learns_and_what_lies_outside_of_blocks_stays(family: TinyFamily) -> None:
    denoiser = prepared(family)

    kept = staying(denoiser, family.blocks())

    gone = {name for name, one in denoiser.named_parameters() if all(one is not other for other in kept)}
    assert gone == {name for name, _ in denoiser.named_parameters() if "blocks." in name and "lora_" not in name}


def test_a_pass_without_gradients_only_goes_forward(family: TinyFamily) -> None:
    denoiser, away = prepared(family), Away()
    batch = example_batch(family, Geometry(64, 64))
    settle(denoiser, family.blocks(), away, CPU)

    with BlockStack(denoiser, family.blocks(), [], away), torch.no_grad():
        prediction = family.predict(denoiser, example_noised(family, batch), batch)

    assert torch.isfinite(prediction).all()
    assert {direction for _, direction, _ in away.calls} == {"forward"}
