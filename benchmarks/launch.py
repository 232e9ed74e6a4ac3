"""Starting: from launch to the first optimizer step with warm caches, and ``st --help``."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from figure import Bar, Figure, median, shown
from prepared import Prepared
from processes import Case, environment, rounds

GROUP = "launch"
HELP = "import sys; from st.cli import run; sys.exit(run(['--help']))"


def measure(scratch: Path, quick: bool, made: Prepared) -> list[Figure]:
    return [
        *(
            _first_step(scratch, 1 if quick else 3, made, adapter)
            for adapter in (("full",) if quick else ("full", "lora"))
        ),
        _help(2 if quick else 11),
    ]


def _first_step(scratch: Path, turns: int, made: Prepared, adapter: str) -> Figure:
    file = made.run_file(f"launch-{adapter}", adapter=adapter)
    cases: dict[str, Case] = {
        "raw": (GROUP, "raw", made.raw_case("raw", adapter=adapter)[2]),
        "st": (GROUP, "st", [str(file)]),
    }
    found = {
        name: [one["cpu"] for one in answers] for name, answers in rounds(cases, turns, scratch / "log.txt").items()
    }
    ratio = median([one / other for one, other in zip(found["st"], found["raw"], strict=True)])
    floor, ours = (shown(median(found[name]), "s") for name in ("raw", "st"))
    what = f"launch to first step with warm caches, {adapter} training"
    return Figure(GROUP, what, ratio, "x", Bar(1.3), floor, ours, "CPU seconds from the start of the interpreter")


def _help(turns: int) -> Figure:
    """By the clock on the wall, since that is what a person waits for."""
    spent: dict[str, list[float]] = {"-c pass": [], HELP: []}
    for _ in range(turns + 1):
        for text, seconds in spent.items():
            began = perf_counter()
            program = ["-c", text] if text == HELP else ["-c", "pass"]
            subprocess.run([sys.executable, *program], env=environment(), stdout=subprocess.DEVNULL, check=True)
            seconds.append(perf_counter() - began)
    floor, ours = (median(seconds[1:]) for seconds in spent.values())
    detail = "wall time, which other programs lengthen; the floor: an interpreter that does nothing"
    return Figure(GROUP, "st --help", ours, "s", Bar(0.25), shown(floor, "s"), shown(ours, "s"), detail)


def raw_first_step(cached: str, checkpoint: str, adapter: str, precision: str) -> None:
    """The bare loop up to the end of its first step."""
    from stepclock import report_first_step

    report_first_step()
    from raw_loop import Raw, train

    train(Raw(cached, checkpoint, adapter, precision), 1)


def st_first_step(run_file: str) -> None:
    """A run of ``st`` up to the end of its first step."""
    from stepclock import report_first_step

    report_first_step()
    from st.cli import run

    run(["train", run_file])


CASES: dict[str, Callable[..., None]] = {"raw": raw_first_step, "st": st_first_step}
