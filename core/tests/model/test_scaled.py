"""An adapter at another strength: exactly that many times what it adds, and as it was afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from st import StError
from st.model.adapters.full import FullAdapter, FullOptions
from st.model.adapters.lora import LoraAdapter, LoraOptions
from st.model.inside.blocks import BlockStack
from st.model.inside.recompute import Recompute, RecomputeOptions
from st.testing.subjects.tiny import TinyFamily

FAMILY = TinyFamily(TinyFamily.Options())


class Layers(nn.Module):
    """Two layers without bias, so that an update is all that another strength can change."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(8, 8, bias=False)
        self.to_out = nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.to_out(torch.tanh(self.to_q(x)))
        return answer


def trained(**options: Any) -> tuple[Layers, LoraAdapter]:
    torch.manual_seed(0)
    layers = Layers()
    adapter = LoraAdapter(LoraOptions(rank=2, alpha=3, **options))
    adapter.attach(layers, ("to_q", "to_out"))
    for parameter in layers.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    return layers, adapter


def by_hand(layers: Layers, factor: float, x: Tensor) -> Tensor:
    """The two layers with W + factor * alpha / rank * B A in place of W."""
    found: list[Tensor] = []
    for one in (layers.to_q, layers.to_out):
        layer: Any = one
        update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        found.append(layer.base_layer.weight + factor * 1.5 * update)
    return torch.tanh(x @ found[0].T) @ found[1].T


@pytest.mark.parametrize("factor", [1.0, -1.0, 0.5, 0.0])
def test_an_update_counts_as_often_as_it_is_asked_for(factor: float) -> None:
    layers, adapter = trained()
    x = torch.randn(3, 8)

    with adapter.scaled(layers, factor):
        answer = layers(x)

    assert torch.allclose(answer, by_hand(layers, factor, x), atol=1e-6)


def test_a_strength_of_nothing_is_the_untrained_model() -> None:
    layers, adapter = trained()
    x = torch.randn(3, 8)
    with adapter.disabled(layers):
        untrained = layers(x)

    with adapter.scaled(layers, 0.0):
        assert torch.equal(layers(x), untrained)


def test_the_opposite_strength_turns_what_a_layer_adds_around() -> None:
    layers, adapter = trained()
    x = torch.randn(3, 8)
    base = layers.to_q.base_layer(x)  # type: ignore[operator]
    added = layers.to_q(x) - base

    with adapter.scaled(layers, -1.0):
        assert torch.allclose(layers.to_q(x) - base, -added, atol=1e-6)


def test_afterwards_it_is_as_strong_as_before_also_after_an_error() -> None:
    layers, adapter = trained()
    x = torch.randn(3, 8)
    before = layers(x)

    with pytest.raises(ZeroDivisionError), adapter.scaled(layers, 0.1), adapter.scaled(layers, 3.0):
        raise ZeroDivisionError

    assert torch.equal(layers(x), before)


def test_backward_inside_recomputes_at_the_same_strength() -> None:
    from pathlib import Path
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as directory:
        denoiser = TinyFamily.tiny(Path(directory)).load_denoiser(torch.device("cpu"), torch.float32)
    adapter = LoraAdapter(LoraOptions(rank=2))
    adapter.attach(denoiser, FAMILY.adapter_targets())
    learned = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
    torch.manual_seed(1)
    for parameter in learned:
        nn.init.normal_(parameter, std=0.1)
    given = torch.randn(1, 192, 4, 4), torch.tensor([0.5]), torch.randn(1, 3, 16)

    def gradients(*around: Any) -> list[Tensor]:
        denoiser.zero_grad(set_to_none=True)
        with BlockStack(denoiser, FAMILY.blocks(), around), adapter.scaled(denoiser, -1.0):
            torch.autograd.backward(denoiser(*given).square().sum())
        return [parameter.grad for parameter in learned if parameter.grad is not None]

    kept, recomputed = gradients(), gradients(Recompute(RecomputeOptions(every=1)))

    assert len(kept) == len(learned)
    assert all(torch.equal(one, other) for one, other in zip(kept, recomputed, strict=True))


@pytest.mark.parametrize(("options", "setting"), [({"use_dora": True}, "use_dora"), ({"init": "pissa"}, "init")])
def test_an_update_that_does_not_only_add_is_refused(options: dict[str, Any], setting: str) -> None:
    layers, adapter = trained(**options)

    with pytest.raises(StError, match="cannot be trained at another strength") as refused, adapter.scaled(layers, 1.0):
        pass

    assert refused.value.fix == f"leave adapter.{setting} out"


def test_all_weights_of_a_model_have_no_strength() -> None:
    with pytest.raises(StError, match="FullAdapter cannot count what it has learnt -1 times"):
        FullAdapter(FullOptions()).scaled(Layers(), -1.0)
