"""The family keeps the promises of every family."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline
from torch import Tensor, nn

from st import Batch
from st.testing import ModelFamilyTests, not_applicable
from st_sdxl import Sdxl

# A guard of diffusers warns where the text encoders are left out, as they are here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")
CONVOLVES = not_applicable("the U-Net changes its resolution, and convolves between its transformer blocks")


class TestSdxl(ModelFamilyTests):
    test_token_count_matches_the_stream = CONVOLVES
    test_dropping_no_tokens_changes_nothing = CONVOLVES
    test_dropped_tokens_rejoin_unchanged = CONVOLVES
    test_routed_tokens_have_gradients = CONVOLVES
    test_dropped_tokens_are_the_same_alone_and_batched = CONVOLVES

    @pytest.fixture
    def family(self, checkpoint: Path) -> Sdxl:
        return Sdxl(Sdxl.Options(checkpoint=str(checkpoint)))

    @pytest.fixture
    def reference(self, family: Sdxl) -> Any:
        """DDIM, whose step is the exact one of a noise schedule, from pure noise."""

        def render(denoiser: nn.Module, batch: Batch, noise: Tensor) -> tuple[Tensor, Sequence[float]]:
            pipeline = StableDiffusionXLPipeline.from_pretrained(family.options.checkpoint, unet=denoiser)
            pipeline.scheduler = DDIMScheduler.from_config(
                pipeline.scheduler.config, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True
            )
            pipeline.set_progress_bar_config(disable=True)
            embeds = {name: batch.conditions[name] for name in ("prompt_embeds", "pooled_prompt_embeds")}
            latents = pipeline(
                **embeds, latents=noise, guidance_scale=1.0, num_inference_steps=5, output_type="latent",
                height=noise.shape[2] * 8, width=noise.shape[3] * 8,
            ).images  # fmt: skip
            asked = [(float(index) + 1) / 1000 for index in pipeline.scheduler.timesteps]
            return torch.as_tensor(latents), [*asked, 0.0]

        return render
