"""A tiny checkpoint, and the family on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Lumina2Transformer2DModel
from torch import nn

from st_lumina2 import Lumina2, Lumina2Options


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, written once."""
    path = tmp_path_factory.mktemp("lumina2") / "tiny"
    Lumina2.tiny(path)
    return path


@pytest.fixture
def make_family(folder: Path) -> Callable[..., Lumina2]:
    """The family on the tiny checkpoint, with options."""

    def make(**options: Any) -> Lumina2:
        given = {"checkpoint": str(folder), "text_precision": "fp32"} | options
        return Lumina2(Lumina2Options(**given))

    return make


@pytest.fixture
def family(make_family: Callable[..., Lumina2]) -> Lumina2:
    """The family as it is without options."""
    return make_family()


@pytest.fixture(scope="session")
def published() -> nn.Module:
    """The layers of the published models, without weights."""
    with torch.device("meta"):
        denoiser: nn.Module = Lumina2Transformer2DModel(num_kv_heads=8, cap_feat_dim=2304)
    return denoiser
