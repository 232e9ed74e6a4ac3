"""Processes: pieces of work, each in an interpreter of its own, in turn, so that neighbours and drift hit all alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from child import MARK

HERE = Path(__file__).parent
Case = tuple[str, str, Sequence[object]]
"""Module, case, arguments."""

STEADY = {"MALLOC_TRIM_THRESHOLD_": str(1 << 32), "MALLOC_MMAP_THRESHOLD_": str(1 << 30)}
"""Lets a process of glibc keep the memory that it frees. What it would give back, and fetch again page by page in the
next step, hangs on how large its largest allocation was: chance, which weighs up to seven percent of a step."""


class BenchmarkFailed(RuntimeError):
    """A measured process ended before it answered."""


def environment() -> dict[str, str]:
    """One thread, no hub, no settings of the person who runs it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ST_") and name != "PYTHONPATH"}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ARROW_NUM_THREADS"), "1")
    return {**kept, **threads, "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "0"}


class Child:
    """A running case. What it prints on standard error goes to ``log``."""

    def __init__(self, case: Case, log: Path, more: Mapping[str, str]) -> None:
        module, name, arguments = case
        self.log = log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / "child.py"), module, name, json.dumps(arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment() | more,
                text=True,
            )

    def answer(self) -> Any:
        """Its next answer. Raises BenchmarkFailed with the end of its log where there is none."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
        self._process.wait()
        tail = self.log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise BenchmarkFailed(f"a measured process ended with {self._process.returncode}:\n{tail}")

    def go_on(self) -> None:
        """Let it take its next turn."""
        assert self._process.stdin is not None
        self._process.stdin.write("go on\n")
        self._process.stdin.flush()

    def end(self) -> None:
        """Close its input, which ends one that waits for its turn, and wait."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


@contextmanager
def running(case: Case, log: Path, more: Mapping[str, str] | None = None) -> Iterator[Child]:
    """A case, until the block ends. more: of its environment."""
    child = Child(case, log, more or {})
    try:
        yield child
    finally:
        child.end()


def once(case: Case, log: Path) -> Any:
    """The one answer of a case."""
    with running(case, log) as child:
        return child.answer()


def rounds(cases: Mapping[str, Case], count: int, log: Path) -> dict[str, list[Any]]:
    """The answers of several cases, one process after the other, in turn, every second round backwards."""
    found: dict[str, list[Any]] = {name: [] for name in cases}
    for turn in range(count):
        for name in list(cases)[:: -1 if turn % 2 else 1]:
            found[name].append(once(cases[name], log))
    return found


@dataclass(frozen=True, slots=True)
class Turn:
    """CPU seconds per step of two programs that ran one after the other."""

    floor: float
    ours: float


@dataclass(frozen=True, slots=True)
class Course:
    """What a program reported. steps: CPU seconds per step of each of its turns. first: CPU seconds from the start of
    the interpreter to the end of the first step. peak: the most memory that it held, in MB."""

    steps: list[float]
    first: float
    peak: float


def alternating(floor: Case, ours: Case, turns: int, log: Path) -> list[Turn]:
    """Two programs in turn, as ``taking_turns`` has it."""
    found = taking_turns({"floor": floor, "ours": ours}, turns, log)
    return [Turn(*pair) for pair in zip(found["floor"].steps, found["ours"].steps, strict=True)]


def taking_turns(cases: Mapping[str, Case], turns: int, log: Path) -> dict[str, Course]:
    """Programs that report every few steps (``stepclock``) and then wait, each run while the others wait.

    Their first report is warm-up. What a program does in the background while it should wait counts: the clock is that
    of the whole process and is read at the end of a turn only.
    """
    with ExitStack() as stack:
        children = {name: stack.enter_context(running(case, log, STEADY)) for name, case in cases.items()}
        before = {name: child.answer() for name, child in children.items()}
        spent: dict[str, list[float]] = {name: [] for name in cases}
        for turn in range(turns):
            for name in list(cases)[:: -1 if turn % 2 else 1]:
                children[name].go_on()
                now = children[name].answer()
                spent[name].append((now[1] - before[name][1]) / (now[0] - before[name][0]))
                before[name] = now
    return {name: Course(spent[name], last[2], last[3]) for name, last in before.items()}
