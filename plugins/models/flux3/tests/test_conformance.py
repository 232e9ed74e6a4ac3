"""FLUX.3 passes what every model family passes, and is held to its modular pipelines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from st import Batch, Noised
from st.data.encoder import Input
from st.diffusion.shift import shift
from st.model.checkpoint.networks import load_component, unwrapped_tokenizer
from st.testing import PipelineFamilyTests, not_applicable
from st.testing.family.upstream import Walk
from st_flux3 import Flux3

CPU = torch.device("cpu")


class Held(PipelineFamilyTests):
    """A modular pipeline is given its parts, told its guidance by a guider, and asked for what a block answers."""

    __test__ = False

    @pytest.fixture
    def upstream(self, family: Any, denoiser: nn.Module) -> Any:
        import diffusers

        kind: Any = getattr(diffusers, family.pipeline)
        blocks = getattr(diffusers.modular_pipelines, kind.default_blocks_name)()
        blocks.sub_blocks.pop("prompt_upsampler")
        pipeline = blocks.init_pipeline()
        pipeline.update_components(
            text_encoder=load_component(family.folder, "text_encoder", torch.float32),
            tokenizer=unwrapped_tokenizer(family.folder, "tokenizer"),
            vae=family.codec().load(CPU),
            transformer=denoiser,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def ours(self, latents: Tensor) -> Tensor:
        return latents.transpose(1, 2).unflatten(2, (self.size.height // 16, self.size.width // 16))

    def walked(self, family: Any, pipeline: Any, strength: float, output: str, *, steps: int = 4) -> Walk:
        walk, step = Walk(), pipeline.scheduler.step

        def told(answer: Tensor, time: Any, latents: Tensor, **keywords: Any) -> Any:
            stepped = step(answer, time, latents, **keywords)
            walk.asked.append((latents.clone(), answer.clone(), stepped[0].clone()))
            return stepped

        if hasattr(pipeline, "guider"):
            pipeline.guider = pipeline.guider.new(guidance_scale=strength)
        negative = {"negative_prompt": self.against} if strength > 1 and hasattr(pipeline, "guider") else {}
        pipeline.scheduler.step = told
        try:
            walk.result = pipeline(
                prompt=self.wanted,
                height=self.size.height,
                width=self.size.width,
                num_inference_steps=steps,
                generator=torch.Generator().manual_seed(5),
                output_type="pt",
                output="images",
                **negative,
                **self.call(family),
            )
        finally:
            del pipeline.scheduler.step
        walk.times = pipeline.scheduler.sigmas.tolist()
        return walk


class TestKleinBase(Held):
    __test__ = True

    @pytest.fixture
    def family(self, tmp_path: Path) -> Flux3:
        return Flux3.tiny(tmp_path / "tiny")


@pytest.mark.alone
class TestKlein(Held):
    """Asked for the velocity where it is, as it is trained, and by steps that lead somewhere in its pipeline."""

    __test__ = True
    strengths = (1.0,)

    @pytest.fixture
    def family(self, tmp_path: Path) -> Flux3:
        return Flux3.tiny(tmp_path / "tiny", "klein")

    def predictor(self, family: Any, denoiser: nn.Module, strength: float) -> Any:
        (times,) = {tuple(_evenly(family, steps)) for steps in (4,)}
        conditions = self.conditions(family, self.wanted)

        def predict(x: Tensor, t: Tensor) -> Tensor:
            batch = Batch(("a",), (0,), "a", latents=x, conditions=conditions)
            following = max((one for one in times if one < float(t[0]) - 1e-4), default=0.0)
            noised = Noised(x=x, t=t, clean=x, noise=x, told={"target_time": torch.full_like(t, following)})
            return family.predict(denoiser, noised, batch)

        return predict


def _evenly(family: Any, steps: int) -> list[float]:
    """The times of a walk, shifted."""
    even = [1 - step / steps for step in range(steps)]
    return [shift(one, family.time_shift(1)) for one in even]


@pytest.mark.alone
class TestShownReferences(TestKleinBase):
    """Two pictures of other sizes than what is drawn."""

    strengths = (1.0,)
    test_a_preview_is_the_pipelines = not_applicable("previews with references are drawn by the core's sampler")

    def pictures(self) -> list[Image.Image]:
        draw = np.random.default_rng(0)
        return [Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in ((64, 64), (80, 64))]

    def call(self, family: Any) -> Mapping[str, Any]:
        return {**super().call(family), "image": self.pictures()}

    def extras(self, family: Any) -> Mapping[str, Tensor]:
        found = {}
        for number, picture in enumerate(self.pictures()):
            pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
            with family.codec().open(CPU) as encode:
                (entry,) = encode([Input(key="a", pixels=pixels)])
            found[f"reference{number or ''}"] = entry["latents"][None]
        return found
