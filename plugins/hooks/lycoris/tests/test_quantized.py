"""Quantized layers learn where the algorithm stands beside them, and are refused where it would need their weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from optimum.quanto import QLinear, freeze, qfloat8, quantize
from torch import Tensor, nn

from st.errors import StError
from st.model.quantize import quantized
from st.model.quantize.quantizer import PackedWeight, Quantizer, QuantizerOptions
from st_lycoris import LycorisAdapter, LycorisOptions
from st_lycoris.modules import modules

BESIDE: list[dict[str, Any]] = [
    {"algo": "lokr", "rank": 2},
    {"algo": "lokr", "factor": 4, "full_matrix": True},
    {"algo": "loha", "rank": 3},
    {"algo": "locon", "rank": 3},
    {"algo": "glora", "rank": 3},
    {"algo": "ia3", "on_input": True},
]
REBUILT: list[dict[str, Any]] = [
    {"algo": "full"},
    {"algo": "diag-oft", "rank": 4},
    {"algo": "boft", "rank": 4},
    {"algo": "dylora", "rank": 4},
    {"algo": "ia3"},
    {"algo": "lokr", "rank": 2, "use_dora": True},
]


class Attention(nn.Module):
    """Two layers, the first of which gives its gradient with holes, as attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 128), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.first(x).unflatten(-1, (2, 64)).transpose(1, 2)
        answer: Tensor = self.second(heads.sum(1))
        return answer


def by_quanto(model: nn.Module) -> nn.Module:
    quantize(model, weights=qfloat8)
    freeze(model)
    return model


def by_bitsandbytes(model: nn.Module) -> nn.Module:
    for name, layer in list(model.named_children()):
        small = Linear4bit(layer.in_features, layer.out_features, compute_dtype=torch.float32, quant_type="nf4")
        small.load_state_dict(layer.state_dict())
        model.set_submodule(name, small.to("cpu"))
    return model


class Half(Quantizer):
    """Sixteen bits a weight."""

    def pack(self, weight: Tensor) -> PackedWeight:
        return PackedWeight({"half": weight.half()}, lambda parts: parts["half"].float())


def by_st(model: nn.Module) -> nn.Module:
    quantized.quantize(model, Half("half", QuantizerOptions()), torch.device("cpu"))
    return model


def a_model(quantize: Any) -> nn.Module:
    """It stays in training: bitsandbytes repacks for evaluation on some CPUs, and has no gradients then."""
    torch.manual_seed(0)
    return quantize(Attention()).requires_grad_(False)


every_library = pytest.mark.parametrize("quantize", [by_st, by_quanto, by_bitsandbytes])


X = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(1))


@every_library
@pytest.mark.parametrize("settings", BESIDE, ids=lambda one: one["algo"])
def test_a_quantized_layer_learns_and_goes_on_from_its_file(
    quantize: Any, settings: dict[str, Any], tmp_path: Path
) -> None:
    model, adapter = a_model(quantize), LycorisAdapter(LycorisOptions(**settings))
    base = model(X)
    optimizer = torch.optim.AdamW(adapter.attach(model, ("first", "second")), lr=1e-2)
    assert torch.equal(model(X), base)
    assert isinstance(model.first, (QLinear, Linear4bit, quantized.QuantizedLinear))
    begins = {name: tensor.detach().clone() for name, tensor in adapter.state(model).items()}
    for _ in range(3):
        model(X).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    learned = model(X)
    assert not torch.equal(learned, base)
    moved = {
        name.split(".")[0] for name, tensor in adapter.state(model).items() if not torch.equal(tensor, begins[name])
    }
    assert moved == {"first", "second"}
    with adapter.disabled(model):
        assert torch.equal(model(X), base)

    file = adapter.export(None, model, tmp_path, {})  # type: ignore[arg-type]
    again = a_model(quantize)
    LycorisAdapter(LycorisOptions(start=str(file))).attach(again, ())
    torch.testing.assert_close(again(X), learned, atol=1e-5, rtol=0)
    assert all(module.bypass_mode for _, module in modules(again).values())


@every_library
@pytest.mark.parametrize("settings", REBUILT, ids=lambda one: one["algo"])
def test_an_algorithm_that_needs_the_weight_is_refused(quantize: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(StError, match="'first' is quantized"):
        LycorisAdapter(LycorisOptions(**settings)).attach(a_model(quantize), ("first",))
