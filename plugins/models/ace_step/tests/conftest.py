"""A tiny checkpoint, the family on it, and the upstream pipeline as its users load it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AceStepPipeline
from torch import Tensor

from st import Batch, Noised
from st.data.encoder import Input
from st_ace_step import AceStep, AceStepOptions
from st_ace_step.tiny import write_tiny

CPU = torch.device("cpu")
Song = tuple[str, Mapping[str, str]]
SONGS: Sequence[Song] = (
    ("calm piano", {"seconds": "2"}),
    ("loud drums and a choir", {"lyrics": "[verse]\nla la la", "bpm": "97", "key": "C major", "seconds": "2"}),
)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, written once."""
    path = tmp_path_factory.mktemp("ace_step") / "tiny"
    AceStep.tiny(path)
    return path


@pytest.fixture(scope="session")
def distilled_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a distilled model."""
    path = tmp_path_factory.mktemp("ace_step") / "turbo"
    write_tiny(path, distilled=True)
    return path


@pytest.fixture
def make_family(folder: Path) -> Callable[..., AceStep]:
    """The family on the tiny checkpoint, with options."""

    def make(**options: Any) -> AceStep:
        given = {"checkpoint": str(folder), "flavour": "base", "text_precision": "fp32"} | options
        return AceStep(AceStepOptions(**given))

    return make


@pytest.fixture
def family(make_family: Callable[..., AceStep]) -> AceStep:
    """The family as it is without options."""
    return make_family()


@pytest.fixture(scope="session")
def load() -> Callable[[Path], Any]:
    """Loads the upstream pipeline."""

    def load(folder: Path) -> Any:
        pipeline: Any = AceStepPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    return load


@pytest.fixture(scope="session")
def upstream(folder: Path, load: Callable[[Path], Any]) -> Any:
    """The pipeline as it was written, loaded once."""
    return load(folder)


@pytest.fixture
def songs() -> Sequence[Song]:
    """Two songs, of which different things are told."""
    return SONGS


@pytest.fixture
def conditions() -> Callable[..., dict[str, Tensor]]:
    """Collated songs of a family."""

    def make(family: AceStep, *songs: Song) -> dict[str, Tensor]:
        (encoder,) = family.text_encoders()
        with encoder.open(CPU) as ask:
            entries = ask([Input(key=caption, caption=caption, facts=facts) for caption, facts in songs])
        return dict(family.collate(entries))

    return make


@pytest.fixture
def sample(conditions: Callable[..., dict[str, Tensor]]) -> Callable[..., tuple[Batch, Noised]]:
    """Two songs of noise, at two times."""

    def make(family: AceStep, songs: Sequence[Song] = SONGS, length: int = 25) -> Any:
        clean, noise = torch.randn(2, len(songs), 8, length, generator=torch.Generator().manual_seed(0))
        t = torch.linspace(0.25, 0.75, len(songs))
        batch = Batch(
            keys=tuple(caption for caption, _ in songs),
            indices=tuple(range(5, 5 + len(songs))),
            dataset="a",
            latents=clean,
            conditions=conditions(family, *songs),
        )
        return batch, Noised(x=family.path(t).of(clean, noise), t=t, clean=clean, noise=noise)

    return make


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Nothing is drawn and no gradient kept that a test does not ask for."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
