"""Clips and sounds: memory of scanning and encoding by the length of clips, and two hundred mixed files of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING, Any

from figure import Bar, Figure, median, shown
from processes import Case, rounds
from rows import peak_megabytes

if TYPE_CHECKING:
    import torch

    from st.data.encoder import Input, LatentCodec
    from st.data.sets.prepare import PreparedSet
    from st.report.report import Report

Answer = dict[str, float]
GROUP = "media"
SHORT, LONG = 60, 3600
"""Frames of a clip of two seconds, and of one of two minutes."""

_BAD = 20
"""Every how manieth of the mixed files cannot be used."""


def measure(scratch: Path, quick: bool) -> list[Figure]:
    long, count, turns = (240, 14, 1) if quick else (LONG, 200, 3)
    folders = {"short": scratch / "short", "long": scratch / "long", "mixed": scratch / "mixed"}
    _write_clips(folders["short"], SHORT)
    _write_clips(folders["long"], long)
    _write_mixed(folders["mixed"], count)
    cases: dict[str, Case] = {name: (GROUP, "window", [str(folders[name])]) for name in ("short", "long")}
    cases["mixed"] = (GROUP, "mixed", [str(folders["mixed"])])
    found = rounds(cases, turns, scratch / "log.txt")
    figures = [_growth(found, kind, long) for kind in ("scanning", "encoding")]
    mixed = {unit: median([answer[unit] for answer in found["mixed"]]) for unit in ("seconds", "named", "used")}
    detail = f"{mixed['used']:.0f} encoded, {mixed['named']:.0f} left out by name, none missing"
    seconds = shown(mixed["seconds"], "s")
    what = f"{count} clips, {count} sounds and {count} pictures scanned and encoded"
    figures.append(Figure(GROUP, what, mixed["seconds"], "s", None, "-", seconds, detail))
    return figures


def _growth(found: Mapping[str, Sequence[Answer]], kind: str, long: int) -> Figure:
    short_peak, long_peak = (median([answer[kind] for answer in found[name]]) for name in ("short", "long"))
    ratio = median([one[kind] / other[kind] for one, other in zip(found["long"], found["short"], strict=True)])
    what = f"peak memory of {kind} 17 frames of a clip, clip {long // SHORT} times as long"
    floor, ours = (shown(value, "MB") for value in (short_peak, long_peak))
    return Figure(GROUP, what, ratio, "x", Bar(1.1), floor, ours, "the whole process; the floor: clips of two seconds")


def _write_clips(folder: Path, frames: int) -> None:
    """Two clips of noise that does not compress: a long one is a large file."""
    import av
    import numpy as np

    folder.mkdir()
    generator = np.random.default_rng(0)
    pictures = [generator.integers(0, 256, (180, 320, 3), dtype=np.uint8) for _ in range(30)]
    for number in range(2):
        with av.open(str(folder / f"{number}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=30, options={"preset": "ultrafast"})
            assert isinstance(stream, av.VideoStream)
            stream.height, stream.width, stream.pix_fmt = 180, 320, "yuv420p"
            for place in range(frames):
                frame = av.VideoFrame.from_ndarray(pictures[(place + number) % 30], format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())


def _write_mixed(folder: Path, count: int) -> None:
    """So many clips, sounds and pictures each, in every format, of mixed sizes, rates and lengths; every twentieth is
    cut short."""
    import numpy as np
    from PIL import Image

    from st.testing.media import tone, write_clip, write_sound

    for kind, number in product(("video", "audio", "image"), range(count)):
        place = folder / kind / f"{number:03}"
        if kind == "video":
            suffix = (".mp4", ".mov", ".webm", ".mkv", ".gif")[number % 5]
            size = (96 + 16 * (number % 3), 128 + 16 * (number % 4))
            path = write_clip(place.with_suffix(suffix), 9 + number % 16, size=size, rate=8 + number % 9)
        elif kind == "audio":
            suffix = (".wav", ".flac", ".mp3", ".ogg")[number % 4]
            rate = (22050, 44100, 48000)[number % 3]
            path = write_sound(place.with_suffix(suffix), tone(1 + number % 7, rate), rate)
        else:
            path = place.with_suffix(".png")
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (96, 128, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
        if number % _BAD == 7:
            path.write_bytes(path.read_bytes()[:64])


def one_window(folder: str) -> Answer:
    """Scan clips, then encode the last 17 frames of each."""
    from st.report.report import Report

    report = Report.silent()
    one = _prepared(Path(folder), report, num_frames=17, window="end")
    scanning = peak_megabytes()
    _encode(one, report, Path(folder).with_suffix(".cache"))
    return {"scanning": scanning, "encoding": peak_megabytes()}


def all_kinds(folder: str) -> Answer:
    """Scan and encode every kind of media; every file must be used or named."""
    from st.report.console import NoConsole
    from st.report.report import Report, ReportOptions

    class Listener(Report):
        def __init__(self) -> None:
            super().__init__(ReportOptions(), None, NoConsole())
            self.named: set[str] = set()

        def dropped(self, dataset: str, key: str, reason: str) -> None:
            self.named.add(key)

    began, used, named = process_time(), 0, 0
    for kind in ("video", "audio", "image"):
        report, place = Listener(), Path(folder) / kind
        one = _prepared(place, report, **({"num_frames": 5} if kind == "video" else {}))
        left = _encode(one, report, Path(folder).with_suffix(f".cache-{kind}"))
        keys = {left.index.key(int(row)) for bucket in left.buckets for row in bucket.rows}
        assert keys | report.named == {file.name for file in place.iterdir()} and not keys & report.named
        used, named = used + len(keys), named + len(report.named)
    return {"seconds": process_time() - began, "used": used, "named": named}


def _prepared(folder: Path, report: Report, **options: Any) -> PreparedSet:
    from st.data.dataset import DatasetConfig, DatasetOptions
    from st.data.sets.prepare import prepare_set
    from st.data.shape.rule import GeometryRule
    from st.data.source.folder import FolderBackend, FolderOptions

    kind = folder.name if folder.name in ("audio", "image") else "video"
    own = FolderOptions(media=kind, caption="none")
    given = {"url": str(folder), "resolution": 128, "align": 16, "missing_caption": "empty", "max_unreadable": 0.5}
    config = DatasetConfig(DatasetOptions.model_validate(given | options), own, "file")
    rule = GeometryRule(frames_modulus=4)
    return prepare_set(config, FolderBackend(str(folder), own), rule, seed=0, report=report)


def _encode(one: PreparedSet, report: Report, cache: Path) -> PreparedSet:
    import shutil

    import torch

    from st.data.cache.cache import Cache, CacheOptions
    from st.data.cache.encoding import fill
    from st.data.store.store import Store
    from st.train.ranks.ranks import Single

    shutil.rmtree(cache, ignore_errors=True)
    codec = _codec("audio" if one.index.kind(0) == "audio" else "pixels")
    store = Cache(Store.at(str(cache)))
    device, options = torch.device("cpu"), CacheOptions(batch=2, workers=2)
    (left,) = fill([one], codec, [], store, device=device, ranks=Single(device), report=report, options=options).sets
    return left


def _codec(reads: Any) -> LatentCodec:
    """Latents are the mean of what is given, so that what is measured is reading and decoding."""
    from st.data.encoder import LatentCodec

    class Mean(LatentCodec):
        name, fingerprint, sample_rate, channels = "mean", "1", 16000, 1

        @contextmanager
        def open(self, device: torch.device) -> Iterator[Callable[[Sequence[Input]], list[dict[str, torch.Tensor]]]]:
            def encode(inputs: Sequence[Input]) -> list[dict[str, torch.Tensor]]:
                given = [one.pixels if one.audio is None else one.audio for one in inputs]
                return [{"latents": tensor.mean().reshape(1, 1, 1)} for tensor in given if tensor is not None]

            yield encode

        def decoder(self, device: torch.device) -> Any:
            raise NotImplementedError

    codec = Mean()
    codec.reads = reads
    return codec


CASES: dict[str, Callable[..., Answer]] = {"window": one_window, "mixed": all_kinds}
