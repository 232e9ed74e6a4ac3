"""LearningTests: a family's tiny denoiser learns what it is shown."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from st.diffusion.layout import broadcast
from st.testing.examples import example_batch, placed
from st.testing.family.subject import FamilyTests
from st.testing.subjects.built_in import built_in_adapter

if TYPE_CHECKING:
    from torch import Tensor, nn

    from st.diffusion.objective import Batch, Noised
    from st.model.family import ModelFamily


class LearningTests(FamilyTests):
    """learning_rate: of AdamW, for fifty steps on all weights. learned: share of the first loss that may be left."""

    learning_rate: ClassVar[float] = 5e-3
    learned: ClassVar[float] = 0.8

    def test_fifty_steps_learn_one_picture(self, family: ModelFamily[Any], denoiser: nn.Module) -> None:
        import torch

        captions = ("the one picture that there is",) * 4
        batch = example_batch(family, self.geometries[0], captions)
        streams = {name: tensor[:1].expand_as(tensor).clone() for name, tensor in batch.streams.items()}
        extras = {name: tensor[:1].expand_as(tensor).clone() for name, tensor in batch.extras.items()}
        batch = replace(
            batch, latents=batch.latents[:1].expand_as(batch.latents).clone(), streams=streams, extras=extras
        )
        groups = built_in_adapter("full").attach(denoiser, family.adapter_targets())
        parameters = [parameter for group in groups for parameter in group["params"]]
        optimizer = torch.optim.AdamW(parameters, lr=self.learning_rate)
        with torch.no_grad():
            first = self.loss(family, denoiser, batch, seed=1000)

        for step in range(50):
            optimizer.zero_grad()
            torch.autograd.backward(self.loss(family, denoiser, batch, seed=step))
            optimizer.step()

        with torch.no_grad():
            last = self.loss(family, denoiser, batch, seed=1000)
        assert float(last) < self.learned * float(first)

    def loss(self, family: ModelFamily[Any], denoiser: nn.Module, batch: Batch, seed: int) -> Tensor:
        """Mean squared distance to the family's target, at noise and times that the seed decides."""

        noised = self.noised_by(family, batch, seed)
        target = family.target(family.path(noised.t)).of(noised.clean, noised.noise)
        prediction = family.predict(denoiser, noised, batch)
        error = (prediction.float() - target.float()).square()
        return (
            error.mean() if noised.t.ndim == 1 else error[broadcast(noised.t, error.shape).expand_as(error) > 0].mean()
        )

    def noised_by(self, family: ModelFamily[Any], batch: Batch, seed: int) -> Noised:
        """The batch mixed with noise at random times in (0.02, 0.98)."""
        import torch

        from st.diffusion.objective import Noised

        generator, clean = torch.Generator().manual_seed(seed), batch.clean
        noise = torch.randn(clean.shape, generator=generator)
        t = placed(family, torch.rand(len(clean), generator=generator) * 0.96 + 0.02, batch)
        return Noised(x=family.path(t).of(clean, noise), t=t, clean=clean, noise=noise)
