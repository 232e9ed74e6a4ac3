"""A tiny checkpoint, written once, and the family on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from st import Batch, Geometry, Input
from st.testing import example_batch
from st_kolors import Kolors


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder. Nobody writes to it."""
    return Path(Kolors.tiny(tmp_path_factory.mktemp("kolors") / "checkpoint").options.checkpoint)


@pytest.fixture
def make(checkpoint: Path) -> Callable[..., Kolors]:
    """The family on that checkpoint, with these options. Text is encoded in float32, for exact comparison."""

    def build(**options: Any) -> Kolors:
        given = {"checkpoint": str(checkpoint), "text_precision": "fp32"}
        return Kolors(Kolors.Options.model_validate(given | options))

    return build


@pytest.fixture
def batch_of() -> Callable[[Kolors], Batch]:
    """Two samples that were cropped each in its own way."""

    def build(family: Kolors) -> Batch:
        batch = example_batch(family, Geometry(64, 96), ("a red square on a table", "a tree"))
        sizes = {
            "original_size": torch.tensor([[70, 96], [64, 131]]),
            "crop": torch.tensor([[3, 0], [0, 17]]),
            "target_size": torch.tensor([[64, 96], [64, 96]]),
        }
        return replace(batch, extras=sizes)

    return build


@pytest.fixture
def told() -> Callable[..., Mapping[str, Tensor]]:
    """``told(family, "a cat", "")``: what these captions are to the denoiser, as a batch of them."""

    def build(family: Kolors, *captions: str) -> Mapping[str, Tensor]:
        (encoder,) = family.text_encoders()
        with encoder.open(torch.device("cpu")) as encode:
            return family.collate(encode([Input(key=caption, caption=caption) for caption in captions]))

    return build
