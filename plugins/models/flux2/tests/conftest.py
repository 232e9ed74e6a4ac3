"""Tiny checkpoints, and the family on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from st import Batch, Noised
from st.data.encoder import Input
from st_flux2 import Flux2, Flux2Options

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A checkpoint of each flavour, written once."""
    written: dict[str, Path] = {}

    def folder(flavour: str) -> Path:
        if flavour not in written:
            written[flavour] = tmp_path_factory.mktemp("flux2") / flavour
            Flux2.tiny(written[flavour], flavour)  # type: ignore[arg-type]
        return written[flavour]

    return folder


@pytest.fixture
def make_family(folders: Callable[[str], Path]) -> Callable[..., Flux2]:
    """The family on the tiny checkpoint of a flavour, with options."""

    def make(flavour: str = "klein-base-4b", **options: Any) -> Flux2:
        given = {"checkpoint": str(folders(flavour)), "max_tokens": 48, "text_precision": "fp32", "flavour": flavour}
        return Flux2(Flux2Options(**{**given, **options}))

    return make


@pytest.fixture
def sample() -> Callable[..., tuple[Batch, Noised]]:
    """Two samples of noise and captions, at two times."""

    def make(family: Flux2, size: tuple[int, int] = (4, 6)) -> tuple[Batch, Noised]:
        generator, captions = torch.Generator().manual_seed(0), ("a red square", "two small blue circles")
        clean, noise = torch.randn(2, 2, 16, *size, generator=generator)
        t = torch.tensor([0.25, 0.75])
        (encoder,) = family.text_encoders()
        with encoder.open(CPU) as ask:
            conditions = family.collate(ask([Input(key=one, caption=one) for one in captions]))
        batch = Batch(keys=captions, indices=(5, 6), dataset="a", latents=clean, conditions=conditions)
        return batch, Noised(x=family.path(t).of(clean, noise), t=t, clean=clean, noise=noise)

    return make


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
