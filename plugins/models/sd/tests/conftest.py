"""Tiny checkpoints, written once, and the family on them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from st import Batch, Geometry, Input, Noised
from st.testing import example_batch
from st_sd import Sd
from st_sd.flavours import FLAVOURS
from st_sd.tiny import write_tiny

CAPTIONS = ("a red square on a table", "a tree")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The checkpoint of a flavour. Nobody writes to it."""
    root, written = tmp_path_factory.mktemp("sd"), set[str]()

    def folder(flavour: str) -> Path:
        if flavour not in written:
            write_tiny(root / flavour, FLAVOURS[flavour])
            written.add(flavour)
        return root / flavour

    return folder


@pytest.fixture(scope="session")
def make(folders: Callable[[str], Path]) -> Callable[..., Sd]:
    """The family on such a checkpoint, with these options. Text is encoded in float32, for exact comparison."""

    def build(flavour: str = "1.5", **options: Any) -> Sd:
        given = {"checkpoint": str(folders(flavour)), "flavour": flavour, "text_precision": "fp32"}
        return Sd(Sd.Options.model_validate(given | options))

    return build


@pytest.fixture
def rewrite(folders: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of the first version's checkpoint in which one JSON file says something else."""

    def write(file: str, **changes: Any) -> Path:
        copy = tmp_path / "copy"
        shutil.copytree(folders("1.5"), copy)
        settings: Mapping[str, Any] = json.loads((copy / file).read_text(encoding="utf-8"))
        (copy / file).write_text(json.dumps({**settings, **changes}), encoding="utf-8")
        return copy

    return write


@pytest.fixture
def batch_of() -> Callable[[Sd], Batch]:
    """Two samples."""
    return lambda family: example_batch(family, Geometry(64, 96), CAPTIONS)


@pytest.fixture
def noised_at() -> Callable[[Sd, Batch, Tensor], Noised]:
    """A batch at these times, with the same noise each time."""

    def build(family: Sd, batch: Batch, t: Tensor) -> Noised:
        noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(0))
        return Noised(x=family.path(t).of(batch.latents, noise), t=t, clean=batch.latents, noise=noise)

    return build


@pytest.fixture
def told() -> Callable[..., Mapping[str, Tensor]]:
    """``told(family, "a cat", "")``: what these captions are to the denoiser, as a batch of them."""

    def build(family: Sd, *captions: str) -> Mapping[str, Tensor]:
        (encoder,) = family.text_encoders()
        with encoder.open(torch.device("cpu")) as encode:
            return family.collate(encode([Input(key=caption, caption=caption) for caption in captions]))

    return build
