"""ACE-Step passes what every model family passes, and is held to the upstream pipeline."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from diffusers import AceStepPipeline
from torch import Tensor, nn

from st import Batch, Geometry
from st.testing import ModelFamilyTests, not_applicable
from st.testing.examples import CAPTIONS
from st_ace_step import AceStep, AceStepOptions

# diffusers warns where a tokenizer is left out, and torch where its autoencoder norms weights the old way.
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


class TestAceStep(ModelFamilyTests):
    geometries: ClassVar[tuple[Geometry, ...]] = (Geometry(frames=0, seconds=1.0), Geometry(frames=0, seconds=1.5))
    test_a_preview_is_guided_by_a_negative_of_another_length = not_applicable("it is guided away from no text")

    @pytest.fixture
    def family(self, folder: Path, tmp_path: Path) -> AceStep:
        shutil.copytree(folder, tmp_path / "tiny")
        return AceStep(AceStepOptions(checkpoint=str(tmp_path / "tiny"), flavour="base", text_precision="fp32"))

    @pytest.fixture
    def reference(self, folder: Path) -> Any:
        pipeline: Any = UntoldLength.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)

        def sample(denoiser: nn.Module, batch: Batch, noise: Tensor) -> tuple[Tensor, Sequence[float]]:
            """One song after the other: the pipeline has no mask for the shorter of two texts."""
            pipeline.register_modules(transformer=denoiser)
            latents = [
                pipeline(
                    prompt=caption,
                    audio_duration=noise.shape[-1] / pipeline.latents_per_second,
                    latents=one.T[None],
                    num_inference_steps=4,
                    guidance_scale=1.0,
                    output_type="latent",
                    return_dict=False,
                )[0]
                for caption, one in zip(CAPTIONS, noise, strict=True)
            ]
            return torch.cat(latents).transpose(1, 2), pipeline.scheduler.sigmas.tolist()

        return sample


class UntoldLength(AceStepPipeline):
    """The pipeline, where the text says the length that it says where none is known; the kit's captions say none."""

    def encode_prompt(self, *args: Any, audio_duration: float, **kwargs: Any) -> Any:
        return super().encode_prompt(*args, **kwargs)
