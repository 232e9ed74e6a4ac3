"""PredictionTests: what a family's denoiser answers, and to which tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import pytest

from st.testing.examples import example_batch, example_noised, row
from st.testing.family.subject import FamilyTests

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from st.data.geometry import Geometry
    from st.diffusion.objective import Batch, Noised
    from st.model.family import ModelFamily


class Reference(Protocol):
    """An upstream pipeline on the same weights: from noise (B, ...) and a batch's conditions to clean latents.

    Without guidance. times: those at which it asked the denoiser, as st counts them, then 0.
    """

    def __call__(self, denoiser: nn.Module, batch: Batch, noise: Tensor) -> tuple[Tensor, Sequence[float]]: ...


class PredictionTests(FamilyTests):
    """reference_tolerance: largest difference of latents that the upstream pipeline may end with."""

    reference_tolerance: ClassVar[float] = 1e-4

    @pytest.fixture
    def reference(self) -> Reference:
        """The upstream pipeline; a family that has one gives it."""
        raise NotImplementedError(
            "give the test class a `reference` fixture that samples with the upstream pipeline, or write "
            'test_matches_reference = not_applicable("why there is none")'
        )

    def test_prediction_has_the_latents_shape(
        self, family: ModelFamily[Any], denoiser: nn.Module, geometry: Geometry
    ) -> None:
        import torch

        batch = example_batch(family, geometry)
        noised = example_noised(family, batch)

        prediction = family.predict(denoiser, noised, batch)

        assert prediction.shape == batch.clean.shape
        assert torch.isfinite(prediction).all()

    def test_prediction_ignores_batch_mates(
        self, family: ModelFamily[Any], denoiser: nn.Module, noised: Noised, batch: Batch
    ) -> None:
        import torch

        together = family.predict(denoiser, noised, batch)

        for index in range(len(batch.keys)):
            alone, noised_alone = row(batch, noised, index)
            prediction = family.predict(denoiser, noised_alone, alone)
            # Matrix products of another batch size may add in another order; a leak is larger by orders of magnitude.
            torch.testing.assert_close(prediction[0], together[index], rtol=1e-4, atol=1e-5)

    def test_padding_of_captions_changes_nothing(self, family: ModelFamily[Any], denoiser: nn.Module) -> None:
        import torch

        short, long = "a", "a much longer caption that is there so that the short one is padded"
        padded = example_batch(family, self.geometries[0], (short, long))
        unpadded = example_batch(family, self.geometries[0], (short,))
        noised = example_noised(family, padded)
        _, first = row(padded, noised, 0)

        together = family.predict(denoiser, noised, padded)
        alone = family.predict(denoiser, first, unpadded)

        torch.testing.assert_close(alone[0], together[0], rtol=1e-4, atol=1e-5)

    def test_prediction_depends_on_the_caption(
        self, family: ModelFamily[Any], denoiser: nn.Module, noised: Noised, batch: Batch
    ) -> None:
        import torch

        other = example_batch(family, self.geometries[0], ("nothing", "of the kind"))

        prediction = family.predict(denoiser, noised, batch)

        assert not torch.equal(prediction, family.predict(denoiser, noised, other))

    def test_matches_reference(
        self, family: ModelFamily[Any], denoiser: nn.Module, batch: Batch, reference: Reference
    ) -> None:
        from dataclasses import replace
        from functools import partial

        import torch

        from st.diffusion.sampler import sample
        from st.model.streams import PlacesTimes

        noise = torch.randn(batch.clean.shape, generator=torch.Generator().manual_seed(0))
        blank = example_noised(family, batch)

        def predict(x: Tensor, t: Tensor) -> Tensor:
            return family.predict(denoiser, replace(blank, x=x, t=t), batch)

        start, positions = noise, None
        if isinstance(family, PlacesTimes):
            start, positions = family.start(noise, batch), partial(family.times, batch=batch, draws=None)
        with torch.no_grad():
            expected, times = reference(denoiser, batch, noise)
            latents = sample(predict, family.path, family.target, start, times, positions=positions)

        assert float((latents - expected).abs().max()) <= self.reference_tolerance

    def test_sampler_recovers_a_known_flow(self, family: ModelFamily[Any], batch: Batch) -> None:
        import torch

        from st.diffusion.sampler import sample, times

        noise = torch.randn(batch.clean.shape, generator=torch.Generator().manual_seed(0))

        def exact(x: Tensor, t: Tensor) -> Tensor:
            return family.target(family.path(t)).of(batch.clean, noise)

        steps = times(8, family.time_shift(family.tokens(batch.latents)))
        start = family.path(torch.ones(len(noise))).of(batch.clean, noise)
        latents = sample(exact, family.path, family.target, start, steps)

        torch.testing.assert_close(latents, batch.clean, rtol=1e-3, atol=1e-3)
