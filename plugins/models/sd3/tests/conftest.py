"""A tiny checkpoint, and the family on it with a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from st import Batch, Geometry, Noised
from st.testing.examples import example_batch, example_noised
from st_sd3 import Sd3, Sd3Options

SIZE = Geometry(64, 96)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, written once."""
    path = tmp_path_factory.mktemp("sd3") / "tiny"
    Sd3.tiny(path)
    return path


@pytest.fixture
def make_family(folder: Path) -> Callable[..., Sd3]:
    """The family on the tiny checkpoint, with options."""

    def make(**options: Any) -> Sd3:
        given = {"checkpoint": str(folder), "max_tokens": 48, "text_precision": "fp32"} | options
        return Sd3(Sd3Options(**given))

    return make


@pytest.fixture
def family(make_family: Callable[..., Sd3]) -> Sd3:
    """The family as it is without options."""
    return make_family()


@pytest.fixture
def sample() -> Callable[[Sd3], tuple[Batch, Noised]]:
    """Two samples on their way to noise."""

    def make(family: Sd3) -> tuple[Batch, Noised]:
        batch = example_batch(family, SIZE)
        return batch, example_noised(family, batch)

    return make


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Nothing that a test draws moves another."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
