"""What a run tells of itself: report.html over reading its log, and the tags in an adapter over a plain count."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING

from figure import Bar, Figure, median
from processes import once

if TYPE_CHECKING:
    from st.report.log.events import EventLog

Answer = dict[str, list[float]]
GROUP = "telling"
READING = 10
"""Steps between two readings of the losses."""


def measure(scratch: Path, quick: bool) -> list[Figure]:
    steps, samples, turns = (2_000, 2_000, 1) if quick else (200_000, 200_000, 3)
    pages = once((GROUP, "pages", [str(scratch / "run"), steps, turns]), scratch / "log.txt")
    read, first, again = (median(pages[name]) for name in ("read", "first", "again"))
    figures = [
        Figure(GROUP, what, ours / read, "x", bar, f"{1e3 * read:,.0f} ms", f"{1e3 * ours:,.0f} ms", detail)
        for what, ours, bar, detail in (
            (f"report.html of {steps:,} steps, the first of a process", first, None, "over reading the log as JSON"),
            (f"report.html of {steps:,} steps, written again", again, Bar(1.0), f"{20 * READING} steps later"),
        )
    ]
    for said in CAPTIONS:
        tags = once((GROUP, "tags", [said, samples, turns]), scratch / "log.txt")
        floor, ours = (1e6 * median(tags[name]) / samples for name in ("plain", "columns"))
        what = f"tags of an adapter's header, {said}, per sample"
        detail = f"of {samples:,} samples; the floor: Python's Counter over texts that are there"
        figures.append(Figure(GROUP, what, ours / floor, "x", Bar(1.0), f"{floor:.2f} us", f"{ours:.2f} us", detail))
    return figures


def pages(folder: str, steps: int, turns: int) -> Answer:
    """CPU seconds of reading a log, of a first page, and of the page some steps later."""
    from st.report.log.events import EventLog
    from st.report.page.page import RunPage

    directory = Path(folder)
    log = EventLog(directory / "events.jsonl")
    log.write("open", name="run", directory=folder, config={"batch": 4}, versions={})
    log.write("train", step=0, total=2 * steps)
    _log_steps(log, 0, steps)
    found: Answer = {"read": [], "first": [], "again": []}
    for turn in range(turns):
        began = process_time()
        with log.path.open("rb") as lines:
            for line in lines:
                json.loads(line)
        found["read"].append(process_time() - began)
        page = RunPage(directory)
        for name in ("first", "again"):
            began = process_time()
            page.write()
            found[name].append(process_time() - began)
            if name == "first":
                _log_steps(log, steps + 20 * READING * turn, steps + 20 * READING * (turn + 1))
    log.close()
    return found


def _log_steps(log: EventLog, begin: int, end: int) -> None:
    for start in range(begin, end, READING):
        seconds = {f"seconds/{name}": share for name, share in (("step", 1.0), ("compute", 0.75), ("data", 0.125))}
        losses = [0.5 + 0.1 * math.sin(start + step) for step in range(READING)]
        metrics = {"loss": losses[0], "lr": 1e-4, "grad_norm": 2 + math.cos(start), "dataset/photos": 0.5, **seconds}
        log.write("step", step=start + READING, steps=READING, metrics=metrics, losses=losses, paused={})


def _sentence(number: int) -> str:
    return f"a photo of thing {number}, with a chair {number % 977}, by a river"


def _tags(number: int) -> str:
    return ", ".join(f"tag {tag}" for tag in random.Random(number).choices(range(5000), k=10))


CAPTIONS = {"sentences": _sentence, "ten tags": _tags}


def tags(said: str, samples: int, turns: int) -> Answer:
    """CPU seconds of counting parts between commas of every caption."""
    import pyarrow as pa

    from st.data.source.index import Index

    texts = [CAPTIONS[said](number) for number in range(samples)]
    sizes = pa.array([64] * samples, pa.int32())
    keys = [f"{number:08d}.png" for number in range(samples)]
    index = Index.from_table(pa.table({"key": keys, "width": sizes, "height": sizes, "caption": texts}))
    found: Answer = {"plain": [], "columns": []}
    for _ in range(turns):
        began = process_time()
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(part.strip() for part in text.split(","))
        most = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:1000])
        found["plain"].append(process_time() - began)
        began = process_time()
        counted = index.caption_parts(",", 1000)
        found["columns"].append(process_time() - began)
        assert counted == most
    return found


CASES: dict[str, Callable[..., Answer]] = {"pages": pages, "tags": tags}
