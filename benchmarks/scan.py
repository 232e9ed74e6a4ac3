"""Scanning 20,000 pictures: listing, headers, captions and buckets, over a bare header read of the same files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from time import process_time

from figure import Bar, Figure, median, shown
from pictures import write_small
from processes import Case, rounds
from settings import write_run_file

Answer = dict[str, float]
GROUP = "scan"


def measure(scratch: Path, quick: bool) -> list[Figure]:
    count, turns = (400, 1) if quick else (20_000, 3)
    photos = write_small(scratch / "photos", count)
    cases: dict[str, Case] = {"headers": ("scan", "headers", [str(photos)]), "texts": ("scan", "texts", [str(photos)])}
    for source in ("filename", "textfile"):
        file = write_run_file(scratch / source, photos, {"caption": source, "resolution": 128})
        cases[source] = ("scan", "st", [str(file)])
    found = rounds(cases, turns, scratch / "log.txt")
    shutil.rmtree(photos)
    spent = {name: [answer["seconds"] for answer in answers] for name, answers in found.items()}
    both = [headers + texts for headers, texts in zip(spent["headers"], spent["texts"], strict=True)]
    pillow = "Pillow opens each file and the size is bucketed"
    again = [answer["again"] for answer in found["textfile"]]
    return [
        _ratio(f"scan and bucket {count:,} JPEGs", spent["headers"], spent["filename"], Bar(2.0), pillow),
        _ratio(
            f"the same with {count:,} captions in text files",
            both,
            spent["textfile"],
            Bar(2.0),
            "and each text is read",
        ),
        _ratio("the same again, nothing changed since", both, again, None, pillow),
    ]


def _ratio(what: str, floor: list[float], ours: list[float], bar: Bar | None, detail: str) -> Figure:
    value = median([one / other for one, other in zip(ours, floor, strict=True)])
    return Figure(
        GROUP, what, value, "x", bar, shown(median(floor), "s"), shown(median(ours), "s"), f"the floor: {detail}"
    )


def bare_headers(photos: str) -> Answer:
    """Open every picture with Pillow, which reads its header, and bucket it by its size."""
    import PIL.JpegImagePlugin  # noqa: F401
    from PIL import Image

    began = process_time()
    buckets: dict[tuple[int, int], list[str]] = {}
    for entry in os.scandir(photos):
        if entry.name.endswith(".jpg"):
            with Image.open(entry.path) as picture:
                width, height = picture.size
            scale = 128 / (width * height) ** 0.5
            bucket = (max(16, round(width * scale / 16) * 16), max(16, round(height * scale / 16) * 16))
            buckets.setdefault(bucket, []).append(entry.path)
    assert buckets
    return {"seconds": process_time() - began}


def bare_texts(photos: str) -> Answer:
    """Read every caption."""
    began = process_time()
    texts = {}
    for entry in os.scandir(photos):
        if entry.name.endswith(".txt"):
            with open(entry.path, encoding="utf-8") as file:
                texts[entry.path] = file.read()
    assert texts
    return {"seconds": process_time() - began}


def scan_and_bucket(run_file: str) -> Answer:
    """What ``st train`` does before encoding: at its first start, and at its second one."""
    import st.data.sets.prepare
    import st.data.source.scan  # noqa: F401
    from st.report.report import Report
    from st.settings.assembly import assemble
    from st.train.stages import open_cache_store, read_data

    config, plugins = assemble(Path(run_file), training=True)
    shutil.rmtree(config.cache.url, ignore_errors=True)
    open_cache_store(config)
    answer = {}
    for name in ("seconds", "again"):
        began = process_time()
        (one,) = read_data(config, plugins, Report.silent())
        answer[name] = process_time() - began
        assert len(one.buckets) > 1 and sum(map(len, one.buckets)) == len(one.index)
    return answer


CASES: dict[str, Callable[..., Answer]] = {"headers": bare_headers, "texts": bare_texts, "st": scan_and_bucket}
