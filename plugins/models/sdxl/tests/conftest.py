"""A tiny checkpoint, written once, and what upstream makes of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from st import Batch, Geometry, Input, Noised
from st.testing import example_batch
from st_sdxl import Sdxl

CAPTIONS = ("a red square on a table", "a tree")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder. Nobody writes to it."""
    return Path(Sdxl.tiny(tmp_path_factory.mktemp("sdxl") / "checkpoint").options.checkpoint)


@pytest.fixture
def make(checkpoint: Path) -> Callable[..., Sdxl]:
    """The family on that checkpoint, with these options. Text is encoded in float32, for exact comparison."""

    def build(**options: Any) -> Sdxl:
        return Sdxl(Sdxl.Options(**{"checkpoint": str(checkpoint), "text_precision": "fp32"} | options))

    return build


@pytest.fixture
def upstream(checkpoint: Path) -> Callable[..., Any]:
    """The pipeline as its users load it."""

    def load(folder: Path = checkpoint, **components: Any) -> Any:
        pipeline: Any = StableDiffusionXLPipeline.from_pretrained(folder, **components)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return load


@pytest.fixture
def rewrite(checkpoint: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the checkpoint in which one JSON file says something else."""

    def write(file: str, **changes: Any) -> Path:
        copy = tmp_path / "copy"
        if not copy.exists():
            shutil.copytree(checkpoint, copy)
        settings: Mapping[str, Any] = json.loads((copy / file).read_text())
        (copy / file).write_text(json.dumps({**settings, **changes}))
        return copy

    return write


@pytest.fixture
def batch_of() -> Callable[[Sdxl], Batch]:
    """Two samples that were cropped each in its own way."""

    def build(family: Sdxl) -> Batch:
        batch = example_batch(family, Geometry(64, 96), CAPTIONS)
        sizes = {
            "original_size": torch.tensor([[70, 96], [64, 131]]),
            "crop": torch.tensor([[3, 0], [0, 17]]),
            "target_size": torch.tensor([[64, 96], [64, 96]]),
        }
        return replace(batch, extras=sizes)

    return build


@pytest.fixture
def noised_at() -> Callable[[Sdxl, Batch, Tensor], Noised]:
    """A batch at these times, with the same noise each time."""

    def build(family: Sdxl, batch: Batch, t: Tensor) -> Noised:
        noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(0))
        return Noised(x=family.path(t).of(batch.latents, noise), t=t, clean=batch.latents, noise=noise)

    return build


@pytest.fixture
def told() -> Callable[..., Mapping[str, Tensor]]:
    """``told(family, "a cat", "")``: what these captions are to the denoiser, as a batch of them."""

    def build(family: Sdxl, *captions: str) -> Mapping[str, Tensor]:
        (encoder,) = family.text_encoders()
        with encoder.open(torch.device("cpu")) as encode:
            return family.collate(encode([Input(key=caption, caption=caption) for caption in captions]))

    return build
