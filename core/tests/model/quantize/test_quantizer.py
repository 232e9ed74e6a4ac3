"""Networks of packed weights: what is packed, what stays, and what is learnt over it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from st import StError
from st.data.encoder import Input
from st.model.adapters.lora import LoraAdapter, LoraOptions
from st.model.quantize.quantized import QuantizedLinear, check_kept, quantize
from st.model.quantize.quantizer import (
    PackedWeight,
    Quantization,
    Quantizer,
    QuantizerOptions,
    text_encoders,
)
from st.registrar import Choice

CPU = torch.device("cpu")
TARGETS = ("attn.to_q", "attn.to_k", "attn.to_out.0")

# A guard of diffusers warns where the safety checker, the image encoder or a tokenizer is left out, as it is here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")


class Rounded(Quantizer):
    """Whole multiples of a hundredth, in a byte each. packed: the device and the width of each weight, in order."""

    def __init__(self, kind: str = "rounded", options: QuantizerOptions | None = None) -> None:
        super().__init__(kind, options or QuantizerOptions(smallest=0))
        self.packed: list[tuple[str, int]] = []

    def unfit(self, shape: tuple[int, int]) -> str:
        return "of an odd width" if shape[1] % 2 else ""

    def pack(self, weight: Tensor) -> PackedWeight:
        self.packed.append((weight.device.type, weight.shape[1]))
        scale = torch.full((), 0.03, device=weight.device)
        numbers = (weight.float() / scale).round().clamp(-127, 127).to(torch.int8)
        return PackedWeight({"data": numbers, "scale": scale}, partial(_unrounded, dtype=weight.dtype))


def _unrounded(parts: Any, dtype: torch.dtype) -> Tensor:
    return (parts["data"] * parts["scale"]).to(dtype)


def restored(network: nn.Module) -> nn.Module:
    """The same network with plain layers of the restored weights."""
    plain = deepcopy(network)
    for path, module in list(plain.named_modules()):
        if isinstance(module, QuantizedLinear):
            layer = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
            layer.weight.data = module.weight
            if module.bias is not None:
                layer.bias.data = module.bias.data
            plain.set_submodule(path, layer.requires_grad_(False).train(module.training))
    return plain


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"dropout": 0.2}, {"dtype": "bf16"}])
def test_an_adapter_learns_what_it_would_learn_over_the_restored_weights(make_case: Any, options: Any) -> None:
    case = make_case("sd3")
    done = quantize(case.denoiser, Rounded(), CPU)
    plain = restored(case.denoiser)

    learnt = []
    for denoiser in (case.denoiser, plain):
        torch.manual_seed(0)
        adapter = LoraAdapter(LoraOptions(rank=4, **options))
        (group,) = adapter.attach(denoiser, TARGETS)
        optimizer = torch.optim.SGD(group["params"], lr=0.5)
        for _ in range(3):
            optimizer.zero_grad()
            denoiser(**case.arguments, return_dict=False)[0].square().mean().backward()
            optimizer.step()
        learnt.append({name: tensor.detach().clone() for name, tensor in adapter.state(denoiser).items()})

    assert done.layers > 20
    assert learnt[0].keys() == learnt[1].keys()
    for name, tensor in learnt[0].items():
        assert tensor.any(), name
        # Sums of a product and of its bias are rounded in one step or in two.
        assert torch.allclose(tensor, learnt[1][name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_packed_weights_are_not_taken_apart(make_case: Any, init: str) -> None:
    case = make_case("sd3")
    quantize(case.denoiser, Rounded(), CPU)

    with pytest.raises(StError, match=f"adapter.init = '{init}' cannot take apart the weights"):
        LoraAdapter(LoraOptions(init=init)).attach(case.denoiser, TARGETS)


class Odd(nn.Linear):
    """A linear layer that may do anything."""


class Network(nn.Module):
    """Layers of every sort: shared weights, one layer in two places, a class of its own, an odd width."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.out = nn.Linear(8, 20, bias=False)
        self.out.weight = self.words.weight
        self.first = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 6)])
        self.again = self.first[0]
        self.odd = Odd(8, 8)
        self.narrow = nn.Linear(7, 8)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2)


def network() -> Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Network().requires_grad_(False)


def test_what_stays_is_counted_by_its_reason() -> None:
    made = network()

    done = quantize(made, Rounded(), CPU, ["first.1"])

    assert done.left == {
        "whose weight another module shares": ["out"],
        "to be kept": ["first.1"],
        "of class Odd": ["odd"],
        "of an odd width": ["narrow"],
        "of class NonDynamicallyQuantizableLinear": ["attention.out_proj"],
    }
    assert done.others == {"Embedding": 1, "LayerNorm": 1, "MultiheadAttention": 1}
    assert (done.layers, done.linear, done.weights) == (1, 6, 64)
    assert made.again is made.first[0] and isinstance(made.again, QuantizedLinear)
    assert done.sentence.startswith("rounded quantized 1 of 6 linear layers of Network, ")
    # A byte for each of four, and one scale.
    assert done.size_bytes_before - done.size_bytes == 64 * 3 - 4


def test_naming_a_part_keeps_every_layer_inside() -> None:
    done = quantize(network(), Rounded(), CPU, ["first"])

    assert done.left["to be kept"] == ["first.0", "first.1"]


def test_a_name_of_no_linear_layer_is_refused() -> None:
    with pytest.raises(StError, match=r"quantizer.keep = 'norm' names no linear layer of Network") as raised:
        check_kept(network(), ["first", "norm"])

    assert "'out', 'first.0'" in raised.value.why


def test_small_layers_stay() -> None:
    done = quantize(network(), Rounded(options=QuantizerOptions(smallest=50)), CPU)

    assert done.left["of fewer than 50 weights"] == ["first.1"]


def test_one_layer_at_a_time_is_on_the_device(make_case: Any) -> None:
    denoiser = make_case("sd3").denoiser.requires_grad_(False)
    on_device: list[int] = []

    class Watching(Rounded):
        def pack(self, weight: Tensor) -> PackedWeight:
            on_device.append(sum(one.is_meta for one in denoiser.parameters() if one.ndim == 2))
            return super().pack(weight)

    quantizer = Watching()
    done = quantize(denoiser, quantizer, torch.device("meta"))

    assert on_device == [0] * done.layers
    assert {device for device, _ in quantizer.packed} == {"meta"}
    assert all(tensor.is_meta for tensor in (*denoiser.parameters(), *denoiser.buffers()))


def test_float_layers_are_gone_when_their_packed_ones_are_there() -> None:
    import weakref

    made = network()
    before = weakref.ref(made.again)

    quantize(made, Rounded(), CPU)

    assert before() is None


def test_gradients_of_gradients_are_those_of_the_restored_weight() -> None:
    layer = nn.Linear(6, 4).requires_grad_(False)
    packed = QuantizedLinear(layer, Rounded().pack(layer.weight))
    found = []
    for one in (packed, restored(nn.Sequential(packed))[0]):
        x = torch.arange(12.0).reshape(2, 6).div(10).requires_grad_()
        (first,) = torch.autograd.grad(one(x).pow(3).sum(), x, create_graph=True)
        found += torch.autograd.grad(first.pow(2).sum(), x)

    assert torch.allclose(found[0], found[1], rtol=1e-5)


def test_a_bias_may_learn_over_packed_weights() -> None:
    layer = nn.Linear(6, 4).requires_grad_(False)
    packed = QuantizedLinear(layer, Rounded().pack(layer.weight))
    assert packed.bias is not None
    packed.bias.requires_grad_(True)

    packed(torch.ones(3, 5, 6)).sum().backward()

    assert packed.bias.grad is not None and packed.bias.grad.tolist() == [15.0] * 4


def test_a_network_shows_the_dtype_that_it_had() -> None:
    made = nn.Sequential(nn.Linear(8, 8, bias=False)).to(torch.bfloat16).requires_grad_(False)
    quantize(made, Rounded(), CPU)

    LoraAdapter(LoraOptions(rank=2)).attach(made, ["0"])

    assert next(made.parameters()).dtype == torch.bfloat16
    assert made(torch.ones(1, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_copy_and_a_move_give_the_same() -> None:
    layer = nn.Linear(6, 4).requires_grad_(False)
    packed = QuantizedLinear(layer, Rounded().pack(layer.weight))

    moved = deepcopy(packed).to(torch.float64).to(torch.float32)

    assert torch.equal(moved.weight, packed.weight)
    assert torch.equal(moved(torch.ones(6)), packed(torch.ones(6)))


def test_a_weight_cannot_be_replaced() -> None:
    layer = nn.Linear(6, 4).requires_grad_(False)
    packed = QuantizedLinear(layer, Rounded().pack(layer.weight))

    with pytest.raises((AttributeError, KeyError)):
        packed.weight = nn.Parameter(torch.zeros(4, 6))


def test_a_kernel_that_fails_is_refused_before_anything_is_loaded() -> None:
    class Broken(Rounded):
        def pack(self, weight: Tensor) -> PackedWeight:
            raise NotImplementedError("no kernel for this device")

    with pytest.raises(StError, match="cannot pack bfloat16 weights on cpu") as raised:
        Broken().check(CPU, torch.bfloat16)

    assert "no kernel for this device" in raised.value.why


def test_a_kernel_that_gives_something_else_is_refused() -> None:
    class Wrong(Rounded):
        def pack(self, weight: Tensor) -> PackedWeight:
            return super().pack(weight.flip(0))

    with pytest.raises(StError, match="cannot pack float32 weights on cpu") as raised:
        Wrong().check(CPU, torch.float32)

    assert "is off by 14" in raised.value.why


def configured(text: bool, kind: str = "rounded", **told: Any) -> Any:
    options = QuantizerOptions(**{"smallest": 0, "text_encoders": text, **told})
    adapter = Choice("lora", LoraOptions(), LoraAdapter)
    return SimpleNamespace(quantizer=Choice(kind, options, partial(Rounded, kind)), adapter=adapter)


def encoded(encoders: Sequence[Any], *texts: str) -> list[Any]:
    (encoder,) = encoders
    with encoder.open(CPU) as encode:
        answers: list[Any] = encode([Input(key=text, caption=text) for text in texts])
    return answers


def test_text_encoders_are_quantized_where_that_is_asked_for(family: Any, pipelines: Any) -> None:
    heard: list[Quantization] = []
    plain = pipelines.conditions(family, "a red square")[0]["prompt_embeds"]

    found = encoded(text_encoders(configured(True).quantizer, family, heard.append), "a red square")[0]["prompt_embeds"]

    off = (found - plain).norm() / plain.norm()
    assert 0 < off < 0.5
    assert [(one.network, one.layers, one.linear) for one in heard] == [("CLIPTextModelWithProjection", 13, 13)] * 2


def test_quantized_text_encoders_answer_as_their_restored_weights(family: Any) -> None:
    from transformers import CLIPTextModelWithProjection

    folder = family.folder.root(["text_encoder"]) / "text_encoder"
    network = CLIPTextModelWithProjection.from_pretrained(folder).requires_grad_(False)
    quantize(network, Rounded(), CPU)
    expected = restored(network)(torch.tensor([[188, 3, 5, 189]])).text_embeds

    assert torch.allclose(network(torch.tensor([[188, 3, 5, 189]])).text_embeds, expected, rtol=1e-5, atol=1e-6)


def test_entries_of_quantized_text_encoders_are_kept_apart(family: Any) -> None:
    def fingerprint(config: Any) -> str:
        (encoder,) = text_encoders(config.quantizer, family)
        return encoder.fingerprint

    plain = family.text_encoders()[0].fingerprint
    asked = {
        "off": configured(False),
        "on": configured(True),
        "another kind": configured(True, "other"),
        "another option": configured(True, smallest=9),
    }
    kept = configured(True, keep=("attn",))

    found = {name: fingerprint(config) for name, config in asked.items()}

    assert found["off"] == plain
    assert len({*found.values()}) == 4
    # What the denoiser keeps says nothing of its text encoders.
    assert fingerprint(kept) == found["on"]


def test_without_a_quantizer_the_familys_own_encoders_are_used(family: Any) -> None:
    config: Any = SimpleNamespace(quantizer=None)

    assert text_encoders(config.quantizer, family)[0].fingerprint == family.text_encoders()[0].fingerprint
