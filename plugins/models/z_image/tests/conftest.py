"""A tiny checkpoint, and the family on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ZImageTransformer2DModel
from torch import nn

from st_z_image import ZImage, ZImageOptions


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, written once."""
    path = tmp_path_factory.mktemp("z-image") / "tiny"
    ZImage.tiny(path)
    return path


@pytest.fixture
def make_family(folder: Path) -> Callable[..., ZImage]:
    """The family on the tiny checkpoint, with options."""

    def make(**options: Any) -> ZImage:
        given = {"checkpoint": str(folder), "max_tokens": 128, "text_precision": "fp32"} | options
        return ZImage(ZImageOptions(**given))

    return make


@pytest.fixture
def family(make_family: Callable[..., ZImage]) -> ZImage:
    """The family as it is without options."""
    return make_family()


@pytest.fixture(scope="session")
def published() -> nn.Module:
    """The layers of the published models, without weights."""
    with torch.device("meta"):
        denoiser: nn.Module = ZImageTransformer2DModel()
    return denoiser
