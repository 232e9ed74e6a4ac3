"""LoftQ: what a quantizer rounds away, as the beginning of an adapter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from st import StError
from st.model.adapters.lora import LoraAdapter, LoraOptions


class Coarse(nn.Linear):
    """A quantized layer: weights of eight bits, with one scale."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features)
        self.scale = float(plain.weight.detach().abs().max()) / 7
        rounded = (plain.weight.detach() / self.scale).round().to(torch.int8)
        self.weight = nn.Parameter(rounded, requires_grad=False)
        self.bias = plain.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x) * self.scale, self.bias)


class _Targets:
    def adapter_targets(self) -> tuple[str, ...]:
        return ("0", "1")


def _loftq(rank: int) -> tuple[LoraAdapter, nn.Module, nn.Linear]:
    """An adapter on one quantized layer and one that is not, and the first as it was before."""
    torch.manual_seed(0)
    first, second = nn.Linear(12, 8), nn.Linear(8, 8)
    denoiser, adapter = nn.Sequential(first, second), LoraAdapter(LoraOptions(init="loftq", rank=rank, alpha=2 * rank))
    adapter.begin(_Targets(), denoiser)  # type: ignore[arg-type]
    denoiser[0] = Coarse(first)
    adapter.attach(denoiser, ("0", "1"))
    return adapter, denoiser, first


def test_loftq_begins_with_what_was_rounded_away() -> None:
    x = torch.randn(5, 12)

    (_, small, plain), (_, whole, _) = _loftq(2), _loftq(8)

    errors = [(denoiser[0](x) - plain(x)).norm() for denoiser in (nn.Sequential(Coarse(plain)), small, whole)]
    assert errors[1] < 0.95 * errors[0]
    assert errors[2] < 1e-5 * errors[0]
    assert small[1].lora_A["default"].weight.any()


def test_loftq_is_written_for_weights_that_are_not_quantized() -> None:
    adapter, denoiser, plain = _loftq(8)
    x = torch.randn(5, 12)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)

    state, shape = adapter.portable(denoiser)

    update = shape.alphas["0"] / shape.ranks["0"] * state["0.lora_B.weight"] @ state["0.lora_A.weight"]
    assert torch.allclose(plain(x) + x @ update.T, denoiser[0](x), atol=1e-5)
    with adapter.disabled(denoiser):
        assert torch.allclose(denoiser[0](x), plain(x), atol=1e-5)


def test_loftq_goes_on_from_its_state_exactly() -> None:
    (adapter, denoiser, _), (other, fresh, _) = _loftq(4), _loftq(4)
    with torch.no_grad():
        denoiser[0].lora_B["default"].weight += 1
        adapter._starts["0.lora_A.weight.start"] += 0.5

    other.load(fresh, adapter.state(denoiser))

    assert all(torch.equal(other.state(fresh)[name], tensor) for name, tensor in adapter.state(denoiser).items())
    assert torch.equal(fresh[0].get_base_layer().weight, denoiser[0].get_base_layer().weight)


def test_loftq_without_a_quantizer_is_refused() -> None:
    denoiser = nn.Sequential(nn.Linear(12, 8), nn.Linear(8, 8))
    adapter = LoraAdapter(LoraOptions(init="loftq"))
    adapter.begin(_Targets(), denoiser)  # type: ignore[arg-type]

    with pytest.raises(StError, match="none of these layers is quantized"):
        adapter.attach(denoiser, ("0", "1"))
