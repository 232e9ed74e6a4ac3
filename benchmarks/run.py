"""Every benchmark, one table.

    python benchmarks/run.py              about half an hour; writes benchmarks/results/DATE.json and docs/benchmarks.md
    python benchmarks/run.py --only loop  one of them, nothing is written
    python benchmarks/run.py --quick      at toy sizes, to see that everything runs

A bar that does not hold is said in the table; the exit status says whether everything could be measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date
from pathlib import Path
from time import perf_counter

import bars
import draws
import encoding
import families
import feeding
import launch
import loop
import media
import middleware
import restoring
import rows
import saving
import scan
import telling
from figure import Figure
from machine import describe
from prepared import Prepared, prepare
from processes import BenchmarkFailed
from table import markdown, rows_of

ROOT = Path(__file__).parents[1]
COMMAND = "nox -s bench"
ALONE = {
    "scan": scan.measure,
    "rows": rows.measure,
    "encoding": encoding.measure,
    "media": media.measure,
    "middleware": middleware.measure,
    "restoring": restoring.measure,
    "telling": telling.measure,
}
"""Benchmarks that make what they need."""
ON_TRAINING = {
    "loop": loop.measure,
    "launch": launch.measure,
    "feeding": feeding.measure,
    "saving": saving.measure,
    "draws": draws.measure,
}
"""Benchmarks that start from pictures, a denoiser and warm caches."""
FAMILIES = "families"
EVERY = (*ON_TRAINING, *ALONE, FAMILIES)


def main(arguments: list[str]) -> int:
    asked = _parsed(arguments)
    machine, began = describe(), perf_counter()
    figures: list[Figure] = []
    try:
        with _scratch(asked.keep) as scratch:
            for figure in measured(scratch, asked):
                print("\n".join(rows_of([figure])), flush=True)
                figures.append(figure)
        if absent := bars.missing(figures, asked.only or EVERY):
            raise BenchmarkFailed(f"not every bar was measured: {', '.join(absent)}")
    except BenchmarkFailed as error:
        print(error, file=sys.stderr)
        return 1
    seconds = perf_counter() - began
    if not asked.only or asked.output:
        write(figures, machine, seconds, asked.output)
    print(f"measured in {seconds / 60:.1f} minutes; {sum(one.holds is False for one in figures)} bars do not hold")
    return 0


def measured(scratch: Path, asked: argparse.Namespace) -> Iterator[Figure]:
    """The figures of the benchmarks that are asked for, each in a folder of its own."""
    made: Prepared | None = None
    quick: bool = asked.quick
    for name in asked.only or EVERY:
        folder = scratch / name
        folder.mkdir()
        print(f"{name} ...", file=sys.stderr, flush=True)
        if name in ALONE:
            yield from ALONE[name](folder, quick)
        elif name == FAMILIES:
            yield from families.measure(folder, quick, asked.diffusers)
        else:
            made = made or prepare(scratch, quick)
            yield from ON_TRAINING[name](folder, quick, made)


def write(figures: Sequence[Figure], machine: str, seconds: float, folder: Path | None) -> None:
    """The figures as JSON, and as the page of the docs. folder: where both go instead of into the tree."""
    today = date.today().isoformat()
    results, page = folder or ROOT / "benchmarks" / "results", (folder or ROOT / "docs") / "benchmarks.md"
    results.mkdir(parents=True, exist_ok=True)
    facts = {"date": today, "machine": machine, "command": COMMAND, "seconds": round(seconds)}
    rows = [{**asdict(figure), "holds": figure.holds} for figure in figures]
    file = results / f"{today}.json"
    file.write_text(json.dumps({**facts, "figures": rows}, indent=1) + "\n", encoding="utf-8")
    page.write_text(markdown(figures, today, machine, COMMAND, seconds / 60), encoding="utf-8")
    print(f"wrote {file} and {page}")


@contextmanager
def _scratch(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True)
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="st-benchmarks-") as folder:
        yield Path(folder)


def _parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="toy sizes: figures mean nothing; needs --output or --only"
    )
    parser.add_argument("--only", nargs="+", choices=EVERY, help="these benchmarks")
    parser.add_argument("--diffusers", type=Path, help="checkout of diffusers, whose training scripts are measured too")
    parser.add_argument("--output", type=Path, help="folder for the JSON file and the page, instead of the tree")
    parser.add_argument("--keep", type=Path, help="new folder for everything that is measured with, kept for a look")
    asked = parser.parse_args(arguments)
    if asked.quick and not (asked.output or asked.only):
        parser.error("--quick measures nothing worth a page of the docs: name another folder with --output")
    return asked


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
