"""Tiny checkpoints of each flavour, the families on them, and the upstream pipelines as their users load them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from st import Batch, Geometry, Noised
from st.testing import example_batch, example_noised
from st_wan import Wan, WanOptions
from st_wan.tiny import write_tiny

CPU = torch.device("cpu")
CLIP = Geometry(32, 64, 5)
"""Two frames of latents; both edges take ti2v-5b's tokens."""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tiny checkpoint of a flavour, written once."""
    written: dict[str, Path] = {}

    def at(flavour: str) -> Path:
        if flavour not in written:
            written[flavour] = tmp_path_factory.mktemp("wan") / flavour
            write_tiny(written[flavour], flavour)  # type: ignore[arg-type]
        return written[flavour]

    return at


@pytest.fixture(scope="session")
def make_family(folder: Callable[[str], Path]) -> Callable[..., Wan]:
    """The family on the tiny checkpoint of a flavour, with options."""

    def make(flavour: str = "t2v-1.3b", **options: Any) -> Wan:
        given = {"flavour": flavour, "checkpoint": str(folder(flavour)), "text_precision": "fp32"} | options
        return Wan(WanOptions(**given))

    return make


@pytest.fixture(scope="session")
def sample(make_family: Callable[..., Wan]) -> Callable[..., tuple[Batch, Noised]]:
    """Two encoded clips at two times, made once for each flavour and its options."""
    made: dict[str, Batch] = {}

    def make(family: Wan, t: Sequence[float] = (0.25, 0.75)) -> tuple[Batch, Noised]:
        key = f"{family.options.flavour}-{family.options.first_frame}"
        if key not in made:
            made[key] = example_batch(family, CLIP)
        batch = made[key]
        noised = example_noised(family, batch)
        times = torch.tensor(t)
        x = family.path(times).of(noised.clean, noised.noise)
        return batch, Noised(x=x, t=times, clean=noised.clean, noise=noised.noise)

    return make


@dataclass(frozen=True)
class Upstream:
    """A pipeline of diffusers on the same weights."""

    pipeline: Any

    def latents(self, noise: Tensor, **call: Any) -> tuple[Tensor, Sequence[float]]:
        """(latents, times at which it asked, then 0) from noise (B, C, F, h, w), in four steps of Euler's where not
        said otherwise."""
        scale = self.pipeline.vae_scale_factor_spatial
        frames, height, width = noise.shape[2:]
        found = self.pipeline(
            height=height * scale,
            width=width * scale,
            num_frames=(frames - 1) * 4 + 1,
            latents=noise,
            output_type="latent",
            return_dict=False,
            **{"guidance_scale": 1.0, "num_inference_steps": 4, **call},
        )[0]
        return found, self.pipeline.scheduler.sigmas.tolist()


@pytest.fixture(scope="session")
def make_upstream(folder: Callable[[str], Path]) -> Callable[..., Upstream]:
    """Loads a flavour's pipeline, with a scheduler that integrates as the core's sampler does."""

    def make(flavour: str = "t2v-1.3b", **parts: nn.Module) -> Upstream:
        where = folder(flavour)
        kind = getattr(diffusers, diffusers.DiffusionPipeline.load_config(where)["_class_name"])
        pipeline = kind.from_pretrained(where)
        pipeline.set_progress_bar_config(disable=True)
        shift = pipeline.scheduler.config.flow_shift
        pipeline.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
        pipeline.register_modules(**parts)
        return Upstream(pipeline)

    return make


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Nothing is drawn and no gradient kept that a test does not ask for."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
