"""The kit's comparison with a pipeline finds what training gets wrong without a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from st.model.pipelines.packing import unpack
from st.model.pipelines.pipeline_codec import PipelineCodec
from st.testing import PipelineFamilyTests
from st.testing.examples import awake_denoiser, example_batch
from st_flux import Flux, FluxOptions

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")


class Held(PipelineFamilyTests):
    __test__ = False

    def ours(self, latents: Tensor) -> Tensor:
        return unpack(latents, self.size.height // 8, self.size.width // 8)


class Backwards(Flux):
    def predict(self, denoiser: nn.Module, noised: Any, batch: Any) -> Tensor:
        return -super().predict(denoiser, noised, batch)


class Thousandfold(Flux):
    def predict(self, denoiser: nn.Module, noised: Any, batch: Any) -> Tensor:
        from dataclasses import replace

        return super().predict(denoiser, replace(noised, t=noised.t * 1000), batch)


class Unshifted(Flux):
    def time_shift(self, tokens: int) -> float:
        return 1.0


class Centred(PipelineCodec):
    def denormalise(self, autoencoder: nn.Module, latents: Tensor) -> Tensor:
        return latents


class OfOtherStatistics(Flux):
    codec_class = Centred


class ShortSighted(Flux):
    def prompt_arguments(self) -> Any:
        return {"max_sequence_length": 4}


STEPS, TIMES, DECODED, ENCODED, PREVIEW = (
    "test_every_step_of_the_pipeline_is_the_familys",
    "test_times_are_shifted_as_the_pipeline_shifts_them",
    "test_decoded_latents_are_the_pipelines",
    "test_encoded_pictures_are_the_autoencoders",
    "test_a_preview_is_the_pipelines",
)


@pytest.mark.parametrize(
    ("wrong", "test", "given"),
    [
        (Backwards, STEPS, ("denoiser", "upstream", "strength")),
        (Thousandfold, STEPS, ("denoiser", "upstream", "strength")),
        (Unshifted, TIMES, ("batch", "upstream")),
        (OfOtherStatistics, DECODED, ("upstream",)),
        (OfOtherStatistics, ENCODED, ("batch",)),
        (ShortSighted, PREVIEW, ("denoiser", "upstream", "strength")),
    ],
)
def test_what_is_wrong_is_found(wrong: type[Flux], test: str, given: tuple[str, ...], tmp_path: Path) -> None:
    right, kit = Flux.tiny(tmp_path / "tiny"), Held()
    # The pipeline is asked as the user of the right family asks it.
    kit.call = lambda family: {**right.prompt_arguments(), **right.render_arguments(kit.size)}  # type: ignore[method-assign]

    def ask(family: Flux) -> None:
        denoiser = awake_denoiser(family)
        known = {
            "family": family,
            "denoiser": denoiser,
            "strength": 1.0,
            "batch": example_batch(family, kit.geometries[0]),
            "upstream": PipelineFamilyTests.upstream.__wrapped__(kit, right, denoiser),  # type: ignore[attr-defined]
        }
        getattr(kit, test)(**{name: known[name] for name in ("family", *given)})

    ask(right)
    with pytest.raises(AssertionError):
        ask(wrong(FluxOptions(checkpoint=str(tmp_path / "tiny"), max_tokens=48, text_precision="fp32")))
