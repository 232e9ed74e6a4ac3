"""QuantizerTests: what every quantizer promises."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, ClassVar, cast

import pytest

from st.errors import StError
from st.testing.declared import Conformance
from st.testing.runs import TinyRunner, call_cli
from st.testing.subjects.tiny import TinyFamily

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from st.model.quantize.quantized import QuantizedLinear
    from st.model.quantize.quantizer import PackedWeight, Quantizer
    from st.testing.runs import TinyRun

    Build = Callable[..., Quantizer]

KEPT = "blocks.1"
NUM_LINEAR = 23
"""Linear layers of TinyFamily's denoiser, of which one has fewer than 1024 weights."""


class QuantizerTests(Conformance):
    """Subclass it for each kind that a plugin brings.

    plugin: what run files call the plugin. kind: what they call the quantizer. error: the most that a restored weight
    may be off, for normal random weights of 256 x 512, relative to their norm. bits: the most that one of these weights
    may take in bf16, scales included.
    """

    plugin: ClassVar[str]
    kind: ClassVar[str]
    error: ClassVar[float]
    bits: ClassVar[float]

    @pytest.fixture
    def build(self) -> Build:
        """Makes the quantizer with some options."""
        from st.settings.reference import describe

        strategy = describe([self.plugin]).registrar.lookup("quantizer", self.kind)
        return lambda **options: strategy.build(strategy.options(**options))

    @pytest.fixture
    def denoiser(self, tmp_path: Path) -> Callable[[], nn.Module]:
        """Loads the same denoiser anew, frozen."""
        import torch

        family = TinyFamily.tiny(tmp_path / "tiny")
        return lambda: family.load_denoiser(torch.device("cpu"), torch.float32).requires_grad_(False)

    @pytest.fixture(scope="class")
    @classmethod
    def runner(cls, tmp_path_factory: pytest.TempPathFactory) -> TinyRunner:
        """Runs TinyFamily."""
        return TinyRunner(tmp_path_factory.mktemp("quantized"))

    @pytest.fixture(scope="class")
    @classmethod
    def trained(cls, runner: TinyRunner) -> TinyRun:
        """A LoRA of three steps over quantized weights."""
        return runner(plugins=[cls.plugin], text=cls._section())

    def test_it_can_be_used_here(self, build: Build) -> None:
        import torch

        for dtype in (torch.float32, torch.bfloat16):
            build().check(torch.device("cpu"), dtype)

    def test_a_restored_weight_is_off_by_no_more_than_is_said(self, build: Build) -> None:
        import torch

        for dtype in (torch.float32, torch.bfloat16):
            weight = _weight().to(dtype)
            restored = _restored(build().pack(weight))

            off = (restored.double() - weight.double()).norm() / weight.double().norm()
            assert restored.dtype == dtype and restored.shape == weight.shape
            assert 0 < off <= self.error, f"{dtype}: off by {off}"

    def test_a_weight_takes_no_more_room_than_is_said(self, build: Build) -> None:
        import torch

        weight = _weight().to(torch.bfloat16)

        parts = build().pack(weight).parts.values()

        assert 8 * sum(part.numel() * part.element_size() for part in parts) / weight.numel() <= self.bits

    def test_parts_are_plain_tensors(self, build: Build) -> None:
        import torch

        assert {type(part) for part in build().pack(_weight()).parts.values()} == {torch.Tensor}

    def test_equal_weights_are_packed_equally(self, build: Build) -> None:
        import torch

        first, second = (build().pack(_weight()).parts for _ in range(2))

        assert first.keys() == second.keys()
        for name, part in first.items():
            assert torch.equal(part.view(torch.uint8), second[name].view(torch.uint8)), name

    def test_rows_of_zeros_stay_zeros(self, build: Build) -> None:
        weight = _weight()
        weight[:3] = 0

        restored = _restored(build().pack(weight))

        assert restored.isfinite().all()
        assert not restored[:3].any()

    def test_small_and_large_weights_are_restored_alike(self, build: Build) -> None:
        for size in (1e-4, 100.0):
            weight = _weight() * size

            off = (_restored(build().pack(weight)) - weight).norm() / weight.norm()
            assert off <= 1.02 * self.error, f"weights of about {size} are off by {off}"

    def test_the_weight_that_was_given_is_left_alone(self, build: Build) -> None:
        import torch

        weight = _weight()

        build().pack(weight)

        assert torch.equal(weight, _weight())

    def test_restoring_takes_a_quarter_of_the_weight_beside_it(self, build: Build) -> None:
        import torch

        for dtype in (torch.float32, torch.bfloat16):
            weight = _weight().repeat(4, 4).to(dtype)
            packed = build().pack(weight)
            size_bytes = weight.numel() * weight.element_size()

            beside = _most_memory(lambda packed=packed: _restored(packed)) - size_bytes  # type: ignore[misc]
            assert beside <= size_bytes / 4, f"{dtype}: {beside / weight.numel():.1f} bytes a weight beside it"

    def test_a_layer_multiplies_by_the_restored_weight(self, build: Build) -> None:
        import torch

        layer, x = _layer(build()), _input()

        expected = torch.nn.functional.linear(x, layer.weight, layer.bias)

        assert torch.equal(layer(x), expected)

    def test_autocast_applies_to_it(self, build: Build) -> None:
        import torch

        layer = _layer(build())

        with torch.autocast("cpu", torch.bfloat16):
            assert layer(_input()).dtype == torch.bfloat16

    def test_gradients_are_those_of_the_restored_weight(self, build: Build) -> None:
        import torch

        layer, x = _layer(build()), _input().requires_grad_()
        plain, same = torch.nn.Linear(512, 256), _input().requires_grad_()
        plain.weight.data, plain.bias.data = layer.weight, layer.bias.data

        # A gradient that is not contiguous, as some adapters and attention send it.
        for one, output in ((x, layer(x)), (same, plain(same))):
            (gradient,) = torch.autograd.grad(output.transpose(0, 1).square().sum(), one)
            one.grad = gradient

        assert x.grad is not None and same.grad is not None
        assert torch.equal(x.grad, same.grad)

    def test_nothing_of_the_weight_is_kept_for_the_backward_pass(self, build: Build) -> None:
        import torch

        layer, saved = _layer(build()), []

        def note(tensor: Tensor) -> Tensor:
            saved.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            layer(_input().requires_grad_())

        assert max(saved, default=0) < layer.weight.numel()

    def test_it_compiles_without_a_break(self, build: Build) -> None:
        import torch

        layer, x, same = _layer(build()), _input().requires_grad_(), _input().requires_grad_()

        # It remembers the layers of every test before, and gives up after some.
        torch._dynamo.reset()
        # What is traced, forward and backward, run as it is: nothing is generated, so the numbers are the same.
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        for one, output in ((x, layer(x)), (same, compiled(same))):
            (one.grad,) = torch.autograd.grad(output.square().sum(), one)

        assert x.grad is not None and same.grad is not None
        assert torch.equal(x.grad, same.grad)

    def test_other_dtypes_do_not_change_what_is_packed(self, build: Build) -> None:
        import torch

        layer = _layer(build())
        before = layer.weight

        layer.to(torch.bfloat16)

        assert torch.equal(layer.weight, before)

    def test_named_layers_are_kept(self, build: Build, denoiser: Callable[[], nn.Module]) -> None:
        import torch
        from torch import nn

        from st.model.quantize.quantized import QuantizedLinear, quantize

        plain, network = denoiser(), denoiser()

        done = quantize(network, build(), torch.device("cpu"), ("image_out", KEPT))

        kept = {path for paths in done.left.values() for path in paths}
        assert {"image_out", f"{KEPT}.attn.to_q", f"{KEPT}.feed.3"} <= kept
        for path in kept:
            layer, before = (cast(nn.Linear, one.get_submodule(path)) for one in (network, plain))
            assert torch.equal(layer.weight, before.weight), path
        packed = [path for path, one in network.named_modules() if isinstance(one, QuantizedLinear)]
        assert len(packed) == done.layers == NUM_LINEAR - len(kept)

    def test_every_other_weight_is_what_it_was(self, build: Build, denoiser: Callable[[], nn.Module]) -> None:
        import torch

        from st.model.quantize.quantized import quantize

        network, plain = denoiser(), dict(denoiser().named_parameters())

        quantize(network, build(), torch.device("cpu"))

        left = dict(network.named_parameters())
        assert 0 < len(left) < len(plain)
        assert [name for name, parameter in left.items() if not torch.equal(parameter, plain[name])] == []

    def test_the_adapter_of_a_run_learns_over_it(self, trained: TinyRun) -> None:
        ups = [tensor for name, tensor in trained.weights().items() if name.endswith("lora_B.weight")]

        assert trained.outcome == "finished"
        assert ups and all(any(tensor) for tensor in ups), "some update was never changed"

    def test_a_run_says_what_was_quantized(self, trained: TinyRun) -> None:
        (note,) = [event["text"] for event in trained.events() if event.get("kind") == "quantizer"]

        assert note.startswith(f"{self.kind} quantized {NUM_LINEAR - 1} of {NUM_LINEAR} linear layers of Tiny")
        assert "left as they are: 1 of fewer than 1024 weights, 6 LayerNorm" in note

    def test_adapter_files_are_those_of_a_float_base(self, trained: TinyRun, runner: TinyRunner) -> None:
        plain = runner(steps=1)

        quantized = {name: len(tensor) for name, tensor in trained.weights().items()}
        assert quantized == {name: len(tensor) for name, tensor in plain.weights().items()}

    def test_recomputed_blocks_learn_the_same(self, trained: TinyRun, runner: TinyRunner) -> None:
        again = runner(plugins=[self.plugin], text=f"{self._section()}\n[recompute]\nevery = 1")

        assert again.weights() == trained.weights()

    def test_a_resumed_run_ends_with_the_same_weights(self, trained: TinyRun, runner: TinyRunner) -> None:
        first = runner(plugins=[self.plugin], text=self._section(), steps=1)
        resumed = runner(plugins=[self.plugin], text=self._section(), steps=3, resume=first)

        assert resumed.weights() == trained.weights()

    def test_training_every_weight_is_refused(self, tmp_path: Path) -> None:
        from st.testing.runs import TINY

        file = tmp_path / "run.toml"
        file.write_text(
            f'plugins = ["{TINY.as_posix()}:TinyFamily", "{self.plugin}"]\noutput = "{tmp_path.as_posix()}/out"\n'
            f'steps = 1\n{self._section()}\n[adapter]\nkind = "full"\n[[dataset]]\nurl = "photos"\n'
        )

        result = call_cli("train", file, "--dry-run")

        assert result.code == 2
        assert "[quantizer] freezes the denoiser's weights, and adapter.kind = 'full' trains them" in result.err

    def test_nothing_to_quantize_is_an_error(self, build: Build, denoiser: Callable[[], nn.Module]) -> None:
        import torch

        from st.model.quantize.quantized import quantize

        done = quantize(denoiser(), build(smallest=10**9), torch.device("cpu"))

        with pytest.raises(StError, match="finds no layer of TinyTransformer to quantize"):
            done.require()

    @classmethod
    def _section(cls) -> str:
        return f'[quantizer]\nkind = "{cls.kind}"'


def _weight() -> torch.Tensor:
    """(256, 512) normal random numbers."""
    import torch

    return torch.randn(256, 512, generator=torch.Generator().manual_seed(1))


def _input() -> torch.Tensor:
    import torch

    return torch.randn(3, 5, 512, generator=torch.Generator().manual_seed(2))


def _layer(quantizer: Quantizer) -> QuantizedLinear:
    import torch

    from st.model.quantize.quantized import QuantizedLinear

    layer = torch.nn.Linear(512, 256)
    layer.weight.data = _weight()
    return QuantizedLinear(layer.requires_grad_(False), quantizer.pack(layer.weight.data))


def _most_memory(compute: Callable[[], object]) -> int:
    """Bytes that torch holds on the CPU at once, of those that it asks for meanwhile."""
    from torch.profiler import ProfilerActivity, profile

    compute()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        kept = compute()
    events = [one for one in seen.profiler.kineto_results.events() if one.name() == "[memory]"]
    held = list(accumulate(int(one.nbytes()) for one in sorted(events, key=lambda one: one.start_ns())))
    del kept
    return max(held)


def _restored(packed: PackedWeight) -> torch.Tensor:
    return packed.restore(packed.parts)
