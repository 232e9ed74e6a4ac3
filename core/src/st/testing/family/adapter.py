"""AdapterTests: what can be trained of a family's denoiser, and the files it is saved as."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from st.model.adapters.targets import is_named
from st.testing.examples import awake_denoiser
from st.testing.family.subject import FamilyTests
from st.testing.subjects.built_in import built_in_adapter

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from st.diffusion.objective import Batch, Noised
    from st.model.adapters.adapter import Adapter
    from st.model.family import ModelFamily


class AdapterTests(FamilyTests):
    """Low-rank adapters on the family's own targets."""

    def test_every_adapter_target_exists_and_learns(
        self, family: ModelFamily[Any], denoiser: nn.Module, noised: Noised, batch: Batch
    ) -> None:
        import torch

        targets = family.adapter_targets()
        built_in_adapter("lora", rank=2).attach(denoiser, targets)

        torch.autograd.backward(family.predict(denoiser, noised, batch).float().square().mean())

        moved = [name for name, p in denoiser.named_parameters() if p.grad is not None and p.grad.any()]
        layers = {name.partition(".lora_")[0] for name in moved}
        still = [target for target in targets if not any(is_named(layer, target) for layer in layers)]
        assert targets
        assert still == [], "no module of these targets gets a gradient"

    def test_adapter_survives_save_and_load(
        self, family: ModelFamily[Any], denoiser: nn.Module, noised: Noised, batch: Batch
    ) -> None:
        import torch

        trained = self.trained(family, denoiser)
        expected = family.predict(denoiser, noised, batch)
        fresh = awake_denoiser(family)
        restored = built_in_adapter("lora", rank=2)
        restored.attach(fresh, family.adapter_targets())

        restored.load(fresh, trained.state(denoiser))

        assert torch.equal(family.predict(fresh, noised, batch), expected)

    def test_each_format_round_trips(self, family: ModelFamily[Any], denoiser: nn.Module, tmp_path: Path) -> None:
        import torch

        from st.model.files.adapter_file import read_adapter_file, write_adapter_file
        from st.model.files.formats import shape_of

        state = dict(self.trained(family, denoiser).state(denoiser))
        shape = shape_of(state, {})

        for name, layout in family.adapter_formats().items():
            file = tmp_path / f"{name}.safetensors"
            write_adapter_file(file, *layout.to_file(state, shape))
            restored, restored_shape = layout.from_file(*read_adapter_file(file))
            assert restored_shape == shape, name
            assert restored.keys() == state.keys(), name
            assert all(torch.equal(restored[key], state[key]) for key in state), name

    def test_saved_adapter_loads_in_diffusers(
        self, family: ModelFamily[Any], denoiser: nn.Module, noised: Noised, batch: Batch, tmp_path: Path
    ) -> None:
        import torch
        from safetensors.torch import load_file

        adapter = self.trained(family, denoiser)
        expected = family.predict(denoiser, noised, batch)
        written = adapter.export(family, denoiser, tmp_path, {})
        fresh: Any = awake_denoiser(family)
        prefix = next(iter(load_file(written))).partition(".")[0]

        fresh.load_lora_adapter(str(written), prefix=prefix, use_safetensors=True)

        torch.testing.assert_close(family.predict(fresh, noised, batch), expected, rtol=1e-5, atol=1e-6)

    def test_whole_checkpoint_survives_save_and_load(
        self, family: ModelFamily[Any], denoiser: nn.Module, noised: Noised, batch: Batch, tmp_path: Path
    ) -> None:
        import torch

        with torch.no_grad():
            for parameter in denoiser.parameters():
                parameter.mul_(1.25)
        expected = family.predict(denoiser, noised, batch)

        family.save_checkpoint(denoiser, tmp_path / "saved")
        options = family.options.model_copy(update={"checkpoint": str(tmp_path / "saved")})
        # Frozen like the other one: torch computes convolutions differently where their weights learn.
        fresh = type(family)(options).load_denoiser(torch.device("cpu"), torch.float32).requires_grad_(False)

        assert torch.equal(family.predict(fresh, noised, batch), expected)

    def trained(self, family: ModelFamily[Any], denoiser: nn.Module) -> Adapter:
        """A low-rank adapter on the denoiser whose weights have all been moved."""
        import torch

        adapter = built_in_adapter("lora", rank=2)
        generator = torch.Generator().manual_seed(0)
        groups = adapter.attach(denoiser, family.adapter_targets())
        with torch.no_grad():
            for parameter in (parameter for group in groups for parameter in group["params"]):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        return adapter
