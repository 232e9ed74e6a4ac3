from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from st.model.adapters.casting import spare_casts
from st.model.adapters.lora import LoraAdapter, LoraOptions


class Copies(TorchDispatchMode):
    """Counts changes of a tensor's type."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.count += func is torch.ops.aten._to_copy.default
        return func(*args, **(kwargs or {}))


def build(dtype: torch.dtype) -> nn.Module:
    """A frozen network with float32 updates, all of them other than zero."""
    torch.manual_seed(0)
    network: nn.Module = nn.Sequential(nn.Linear(24, 32), nn.SiLU(), nn.Conv1d(3, 3, 3), nn.Linear(30, 8)).to(dtype)
    inject_adapter_in_model(LoraConfig(r=4, target_modules=["0", "2", "3"], init_lora_weights=False), network)
    for name, weight in network.named_parameters():
        weight.requires_grad_("lora_" in name)
        if "lora_" in name:
            weight.data = weight.data.float()
    return network


def spared(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if hasattr(module, "lora_A"):
            spare_casts(module)
    return network


def trained(network: nn.Module, dtype: torch.dtype) -> list[Tensor]:
    """Output and gradients, those of the input too, and the number of casts."""
    x = torch.randn(2, 3, 24, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    with Copies() as copies:
        with torch.autocast("cpu", dtype):
            answer = network(x)
        torch.autograd.backward(answer.float().square().mean())
    gradients = [one.grad for one in (x, *network.parameters()) if one.requires_grad]
    return [answer, *(one for one in gradients if one is not None), torch.tensor(copies.count)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_answers_and_gradients_are_the_same_with_fewer_casts(dtype: torch.dtype) -> None:
    *expected, casts = trained(build(dtype), dtype)

    *found, fewer = trained(spared(build(dtype)), dtype)

    assert len(found) == 8
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert fewer < casts


def test_without_autocast_the_input_is_cast_as_before() -> None:
    x = torch.randn(2, 3, 24, generator=torch.Generator().manual_seed(1)).bfloat16()

    assert torch.equal(spared(build(torch.bfloat16))(x), build(torch.bfloat16)(x))


@pytest.mark.parametrize(("options", "spares"), [({}, True), ({"dropout": 0.1}, False), ({"use_dora": True}, False)])
def test_lora_spares_casts_where_its_update_is_two_products(options: dict[str, Any], spares: bool) -> None:
    network = nn.Sequential(nn.Linear(4, 4))

    LoraAdapter(LoraOptions.model_validate(options)).attach(network, ["0"])

    assert ("_cast_input_dtype" in network[0].__dict__) is spares
