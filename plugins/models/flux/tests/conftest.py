"""A tiny checkpoint, the family on it, and the upstream pipelines as their users load them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxKontextPipeline, FluxPipeline
from torch import Tensor, nn

from st import Batch, Noised
from st.data.encoder import Input
from st_flux import Flux, FluxOptions

CPU = torch.device("cpu")
CAPTIONS = ("a red square", "two small blue circles on a hill")
TOKENS = 48


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, written once."""
    path = tmp_path_factory.mktemp("flux") / "tiny"
    Flux.tiny(path)
    return path


@pytest.fixture
def make_family(folder: Path) -> Callable[..., Flux]:
    """The family on the tiny checkpoint, with options."""

    def make(**options: Any) -> Flux:
        given = {"checkpoint": str(folder), "max_tokens": TOKENS, "text_precision": "fp32"} | options
        return Flux(FluxOptions(**given))

    return make


@pytest.fixture
def family(make_family: Callable[..., Flux]) -> Flux:
    """The family as it is without options."""
    return make_family()


@dataclass(frozen=True)
class Upstream:
    """A pipeline of diffusers on the same weights."""

    pipeline: Any

    def latents(self, conditions: Mapping[str, Tensor], noise: Tensor, **call: Any) -> tuple[Tensor, Sequence[float]]:
        """(latents as ours are, times at which it asked, then 0) from noise (B, 16, h, w), in four steps
        where not said otherwise."""
        batch, channels, height, width = noise.shape
        packed = self.pipeline(
            height=height * 8,
            width=width * 8,
            latents=FluxPipeline._pack_latents(noise, batch, channels, height, width),
            output_type="latent",
            return_dict=False,
            **{"guidance_scale": 1.0, "num_inference_steps": 4, **conditions, **call},
        )[0]
        return FluxPipeline._unpack_latents(packed, height * 8, width * 8, 8), self.pipeline.scheduler.sigmas.tolist()


@pytest.fixture
def make_upstream(folder: Path) -> Callable[..., Upstream]:
    """Loads a pipeline, of another class or with another denoiser."""

    def make(kind: Any = FluxPipeline, denoiser: nn.Module | None = None, where: Path = folder) -> Upstream:
        pipeline = kind.from_pretrained(where)
        pipeline.set_progress_bar_config(disable=True)
        if denoiser is not None:
            pipeline.transformer = denoiser
        return Upstream(pipeline)

    return make


@pytest.fixture(scope="session")
def upstream(folder: Path) -> Upstream:
    """The pipeline as it was written, loaded once."""
    pipeline = FluxPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return Upstream(pipeline)


@pytest.fixture
def kontext() -> type:
    """The pipeline that edits."""
    return FluxKontextPipeline


def encode(family: Flux, *captions: str) -> list[Mapping[str, Tensor]]:
    (encoder,) = family.text_encoders()
    with encoder.open(CPU) as ask:
        return ask([Input(key=caption, caption=caption) for caption in captions])


@pytest.fixture
def conditions() -> Callable[..., dict[str, Tensor]]:
    """Collated captions of a family."""

    def make(family: Flux, *captions: str) -> dict[str, Tensor]:
        return dict(family.collate(encode(family, *captions)))

    return make


@pytest.fixture
def sample() -> Callable[..., tuple[Batch, Noised]]:
    """Two samples of noise and captions, at two times."""

    def make(family: Flux, captions: Sequence[str] = CAPTIONS, size: tuple[int, int] = (8, 12)) -> Any:
        generator = torch.Generator().manual_seed(0)
        clean, noise = torch.randn(2, len(captions), 16, *size, generator=generator)
        t = torch.linspace(0.25, 0.75, len(captions))
        batch = Batch(
            keys=tuple(captions),
            indices=tuple(range(5, 5 + len(captions))),
            dataset="a",
            latents=clean,
            conditions=family.collate(encode(family, *captions)),
        )
        return batch, Noised(x=family.path(t).of(clean, noise), t=t, clean=clean, noise=noise)

    return make


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Nothing is drawn and no gradient kept that a test does not ask for."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
