"""Saving: for how much of the time that writing a checkpoint takes the training loop stands still."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from figure import Bar, Figure, median
from prepared import Prepared
from processes import once

Answer = dict[str, Any]
GROUP = "saving"
EVERY, SAVES = 12, 7
"""Steps between two saves, long enough for the one before to be over; and how many are taken."""


def measure(scratch: Path, quick: bool, made: Prepared) -> list[Figure]:
    every, saves = (2, 3) if quick else (EVERY, SAVES)
    file = made.run_file("saving", save_every=every)
    found = once((GROUP, "st", [str(file), every * saves + every // 2]), scratch / "log.txt")
    stalled, wrote = found["stalled"][:saves], found["wrote"][:saves]
    share = 100 * median([one / other for one, other in zip(stalled[1:], wrote[1:], strict=True)])
    detail = (
        f"wall time; full training, {found['megabytes']:.0f} MB of weights and moments; all saves but the first, "
        f"which has to ask the system for memory to copy into and holds up training for {1e3 * stalled[0]:.0f} ms"
    )
    what = "a save holds up training, of the time it takes to write"
    floor, ours = (f"{1e3 * median(values[1:]):.0f} ms" for values in (wrote, stalled))
    return [Figure(GROUP, what, share, "%", Bar(5.0), floor, ours, detail)]


def saves_of(run_file: str, steps: int) -> Answer:
    """How long the loop paused for each save, how long each was being written, and how large one is."""
    from st.cli import run

    assert run(["train", run_file, "--set", f"steps={steps}"]) == 0
    log = Path(run_file).parent / "run" / "events.jsonl"
    events = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    saves = [event for event in events if event.get("kind") == "checkpoint"]
    files = [file for file in Path(saves[-1]["directory"]).rglob("*") if file.is_file()]
    return {
        "stalled": [event["paused"]["save"] for event in events if "save" in event.get("paused", {})],
        "wrote": [save["wrote_seconds"] for save in saves],
        "megabytes": sum(file.stat().st_size for file in files) / 1e6,
    }


CASES: dict[str, Callable[..., Answer]] = {"st": saves_of}
