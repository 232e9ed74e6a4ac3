"""Data sets in memory, and encoders that say what they were asked."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from st.data.backend import DataBackend
from st.data.cache.cache import Cache, CacheOptions
from st.data.cache.encoding import Encoded, fill
from st.data.dataset import DatasetConfig, DatasetOptions
from st.data.encoder import Encoder, Input, LatentCodec
from st.data.sample import Media, Sample
from st.data.sets.prepare import PreparedSet, prepare_set
from st.data.sets.words import Words
from st.data.shape.rule import GeometryRule
from st.data.store.store import Store
from st.errors import SampleUnreadable
from st.options import Options
from st.report.report import Report


def png(number: int, height: int, width: int, mode: str = "RGB") -> bytes:
    """A picture of noise that its number decides."""
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    pixels = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels, mode).save(file, "PNG")
    return file.getvalue()


class Pictures(DataBackend):
    """Pictures in memory: key -> bytes. Sizes are read from what was added, so that bytes may be broken later."""

    def __init__(self) -> None:
        super().__init__("memory:pictures", Options())
        self.files: dict[str, bytes] = {}
        self.listed: list[Sample] = []

    def add(self, key: str, height: int, width: int, *captions: str, mask: bool = False) -> None:
        """One more picture, of noise that depends on its key."""
        # Bytes behind a picture's end are allowed; they give each file a size of its own, as real ones have.
        self.files[key] = png(sum(key.encode()) + 1000 * len(self.files), height, width) + bytes(len(self.files))
        extras = {"mask": f"mask:{key}"} if mask else {}
        if mask:
            self.files[f"mask:{key}"] = png(len(self.files), height, width, mode="L")
        size = len(self.files[key])
        self.listed.append(Sample(key, Media("image", height, width), captions, extras, size, 1.0))

    def samples(self, unreadable: Callable[[str, str], None]) -> Iterator[Sample]:
        yield from self.listed

    def read(self, key: str) -> bytes:
        if key not in self.files:
            raise SampleUnreadable(key, "it is gone")
        return self.files[key]


@dataclass
class Diary:
    """What encoders were asked for, in order."""

    opened: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)


class PoolingCodec(LatentCodec):
    """Latents are means over 8 x 8 pixels, in bfloat16."""

    name, reads = "pooling", ("pixels",)

    def __init__(self, diary: Diary, fingerprint: str = "1", most: int = 99, spoiled: str = "") -> None:
        self.diary, self.most, self.spoiled, self._fingerprint = diary, most, spoiled, fingerprint

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    @contextmanager
    def open(self, device: torch.device) -> Iterator[Callable[[Sequence[Input]], list[Mapping[str, Tensor]]]]:
        self.diary.opened.append(self.name)

        def encode(inputs: Sequence[Input]) -> list[Mapping[str, Tensor]]:
            if len(inputs) > self.most:
                raise torch.OutOfMemoryError(f"{len(inputs)} pictures")
            self.diary.keys += [one.key for one in inputs]
            self.diary.sizes.append(len(inputs))
            pixels = torch.stack([one.pixels for one in inputs if one.pixels is not None])
            latents = torch.nn.functional.avg_pool2d(pixels, 8).to(torch.bfloat16)
            for one, row in zip(inputs, latents, strict=True):
                if one.key == self.spoiled:
                    row[0, 0, 0] = float("nan")
            return [{"latents": row} for row in latents]

        yield encode

    def decoder(self, device: torch.device) -> Any:
        raise NotImplementedError


class Letters(Encoder):
    """A caption's letters as numbers, one row each."""

    name, reads = "letters", ("caption",)
    fingerprint = "1"

    def __init__(self, diary: Diary) -> None:
        self.diary = diary

    @contextmanager
    def open(self, device: torch.device) -> Iterator[Callable[[Sequence[Input]], list[Mapping[str, Tensor]]]]:
        self.diary.opened.append(self.name)

        def encode(inputs: Sequence[Input]) -> list[Mapping[str, Tensor]]:
            captions = [one.caption or "" for one in inputs]
            self.diary.keys += captions
            self.diary.sizes.append(len(inputs))
            return [{"text": torch.tensor([[float(ord(c))] for c in f"<{text}>"])} for text in captions]

        yield encode


def collate(encoded: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """Texts cut to their first 16 letters and padded with zeros, (B, 16, 1)."""
    rows = [torch.nn.functional.pad(one["text"][:16], (0, 0, 0, max(16 - len(one["text"]), 0))) for one in encoded]
    return {"text": torch.stack(rows)}


def read_back(text: Tensor) -> str:
    """The caption behind a row of ``collate``."""
    return "".join(chr(int(letter)) for letter in text[:, 0] if letter)[1:-1]


class Told(Report):
    """A report that keeps what it is told."""

    def __init__(self) -> None:
        silent = Report.silent()
        super().__init__(silent.options, None, silent._console)
        self.notes: list[str] = []
        self.drops: list[tuple[str, str, str]] = []

    def note(self, text: str, kind: str = "note", **facts: object) -> None:
        self.notes.append(text)

    def dropped(self, dataset: str, key: str, reason: str) -> None:
        self.drops.append((dataset, key, reason))


@dataclass
class Rank:
    """One of several ranks, each of which is a thread."""

    rank: int = 0
    size: int = 1
    gate: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))

    def barrier(self, stage: str) -> None:
        """Wait for the others, but not for ever."""
        self.gate.wait(30)


def in_ranks(count: int, work: Callable[[Rank], Any]) -> list[Any]:
    """What the work gives on each of so many ranks."""
    gate = threading.Barrier(count)
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, [Rank(number, count, gate) for number in range(count)]))


def prepared(backend: DataBackend, report: Report | None = None, **options: Any) -> PreparedSet:
    """A data set of a backend's pictures, by default at 64 pixels in buckets 32 pixels apart."""
    given: dict[str, Any] = {"url": "memory:pictures", "name": "pictures", "resolution": 64, "align": 32, **options}
    config = DatasetConfig(options=DatasetOptions(**given), backend=Options(), scheme="memory")
    return prepare_set(config, backend, GeometryRule(multiple=8), seed=0, report=report or Report.silent())


def encoded(
    cache: Cache,
    *sets: PreparedSet,
    codec: LatentCodec | None = None,
    text: Encoder | None = None,
    report: Report | None = None,
    ranks: Rank | None = None,
    batch: int = 4,
    prompts: Sequence[str] = (),
    verify: Literal["read", "start"] = "read",
) -> Encoded:
    """Fill a cache with these sets."""
    return fill(
        sets,
        codec or PoolingCodec(Diary()),
        [text or Letters(Diary())],
        cache,
        device=torch.device("cpu"),
        ranks=ranks or Rank(),
        report=report or Report.silent(),
        options=CacheOptions(batch=batch, workers=2, verify=verify),
        prompts=[Words(text) for text in prompts],
    )


@dataclass(frozen=True)
class Studio:
    """Everything above, for tests that cannot import from here."""

    Pictures = Pictures
    PoolingCodec = PoolingCodec
    Letters = Letters
    Diary = Diary
    Told = Told
    png = staticmethod(png)
    prepared = staticmethod(prepared)
    encoded = staticmethod(encoded)
    collate = staticmethod(collate)
    read_back = staticmethod(read_back)
    in_ranks = staticmethod(in_ranks)


@pytest.fixture
def studio() -> Studio:
    return Studio()


@pytest.fixture
def store(tmp_path: Any) -> Store:
    return Store.at(str(tmp_path / "cache"))


@pytest.fixture
def pictures() -> Pictures:
    """Nine square pictures and five wide ones; every third has a mask, every fourth has two captions."""
    backend = Pictures()
    for number in range(14):
        captions = [f"picture {number}", f"again {number}"] if number % 4 == 0 else [f"picture {number}"]
        height, width = (64, 64) if number < 9 else (48, 96)
        backend.add(f"{number:02}.png", height, width, *captions, mask=number % 3 == 0)
    return backend
