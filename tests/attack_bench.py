"""What an attack is, where it happens, and how a command of ``st`` that was attacked is judged.

Every attack gets a copy of one folder, in which a run was trained, and spoils it. The command then runs in a process
that was forked from this one after everything heavy was imported, or, where the interpreter's own start is attacked,
in a shell.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OK, ERROR = "ok", "one error"
BAD = ("TRACEBACK", "SILENT", "HUNG", "RAN CODE", "LOST", "LEAKED", "UNCLEAR")
"""UNCLEAR: an error that names nothing of what was attacked, or takes more than five lines."""
LINES = 5
TRAINED, LONGER = 4, 6
"""Steps of the run that lies in each folder, and of one that goes on with it."""
RAN = "ran-by-a-file"

RUN_FILE = """
plugins = ["tiny.py:TinyFamily"]
output = "run"
steps = {steps}
batch = 2
precision = "fp32"
device = "cpu"
[model]
checkpoint = "tiny"
[adapter]
kind = "lora"
rank = 4
[report]
every = 1
[checkpoint]
every = 2
keep = 5
best = "eval/held"
[evaluation]
every = 2
times = 4
samples = 2
[[dataset]]
url = "photos"
resolution = 64
align = 8
{dataset}
[[dataset]]
name = "held"
role = "evaluation"
url = "held"
resolution = 64
align = 8
"""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: its exit code, below zero by a signal, and all that it said."""

    code: int
    said: str
    seconds: float
    hung: bool = False


@dataclass(slots=True)
class Place:
    """The folder of one attack."""

    root: Path
    clean: dict[int, float]
    """Loss of each step of the undisturbed run."""
    kept: dict[Path, str] = field(default_factory=dict)
    """Digests of the files of the checkpoints that the attack left whole."""

    @property
    def photos(self) -> Path:
        return self.root / "photos"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def ran(self) -> Path:
        """The file that code makes which was never to run."""
        return self.root / RAN

    def write_run_file(self, text: str = "", dataset: str = "", steps: int = TRAINED) -> Path:
        file = self.root / "run.toml"
        file.write_text(text + RUN_FILE.format(steps=steps, dataset=dataset), encoding="utf-8")
        return file

    def anew(self) -> None:
        """As before training: nothing of the run is there."""
        shutil.rmtree(self.run)

    def events(self) -> str:
        log = self.run / "events.jsonl"
        return log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""

    def losses(self) -> dict[int, float]:
        return losses_of(self.events())


@dataclass(frozen=True, slots=True)
class Attack:
    """One thing that is spoilt and the command that meets it.

    names: words of which an error, or a warning of a run that goes on, must hold one. harmless: what is trained may not
    differ from the undisturbed run, or there is nothing to say. during: what happens to the process meanwhile. shell: a
    command line for bash, in place of ``arguments``. check: what must hold beside, or the class and the reason.
    """

    name: str
    spoil: Callable[[Place], object]
    arguments: tuple[str, ...] = ("train", "run.toml")
    names: tuple[str, ...] = ()
    harmless: bool = False
    limit: float = 40.0
    environment: tuple[tuple[str, str], ...] = ()
    during: Callable[[Place, int], object] | None = None
    before: Callable[[], object] | None = None
    shell: str = ""
    check: Callable[[Place, Ended], tuple[str, str] | None] | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of an attack."""

    attack: str
    kind: str
    why: str = ""
    seconds: float = 0.0


def nothing(_place: Place) -> None:
    """Spoil nothing: the attack is on the process."""


def losses_of(log: str) -> dict[int, float]:
    """The last loss that an event log holds of each step."""
    found: dict[int, float] = {}
    for line in log.splitlines():
        with contextlib.suppress(ValueError):
            event: dict[str, Any] = json.loads(line)
            if event.get("event") == "step":
                found[event["step"]] = event["metrics"]["loss"]
    return found


class Bench:
    """Makes places and performs attacks in them. scratch: an empty folder."""

    def __init__(self, scratch: Path) -> None:
        from st.testing.runs import TINY, write_photos
        from st.testing.subjects.tiny import TinyFamily

        self.scratch, self.count = scratch, 0
        self.model, base = scratch / "model", scratch / "base"
        TinyFamily.tiny(base / "tiny")
        write_photos(base / "photos", count=20)
        write_photos(base / "held", count=4)
        # A file of its own beside the run file, which each place holds at the same name.
        (base / "tiny.py").write_text(TINY.read_text(encoding="utf-8"), encoding="utf-8")
        Place(base, {}).write_run_file()
        self._expect(base, "train", "run.toml")
        longer = scratch / "longer"
        shutil.copytree(base, longer)
        self._expect(longer, "train", "run.toml", "--resume", "--set", f"steps={LONGER}")
        self.base, self.clean = base, Place(longer, {}).losses()
        assert sorted(self.clean) == list(range(1, LONGER + 1)), self.clean

    def _expect(self, folder: Path, *arguments: str) -> None:
        ended = _forked(Attack("set-up", nothing, arguments, limit=120), Place(folder, {}))
        assert ended.code == 0, ended.said

    def perform(self, attack: Attack) -> Verdict:
        self.count += 1
        place = Place(self.scratch / f"a{self.count}", self.clean)
        shutil.copytree(self.base, place.root, symlinks=True)
        _set_traps(place)
        whole = _digests(place.run / "checkpoints")
        # What the undisturbed run said is no sign of how far this one is.
        (place.root / "said.txt").unlink()
        attack.spoil(place)
        place.kept = _kept(whole, _digests(place.run / "checkpoints"))
        ended = _in_shell(attack, place) if attack.shell else _forked(attack, place)
        kind, why = judge(attack, place, ended)
        if kind not in BAD:
            with contextlib.suppress(OSError):
                os.chmod(place.root, 0o755)
            shutil.rmtree(place.root, ignore_errors=True)
        return Verdict(attack.name, kind, why, round(ended.seconds, 2))


def judge(attack: Attack, place: Place, ended: Ended) -> tuple[str, str]:
    """The class of an end, and why."""
    tail = ended.said[-600:]
    if place.ran.exists():
        return "RAN CODE", tail
    if ended.hung:
        return "HUNG", tail
    crashed = ended.code in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGFPE)
    if crashed or "Traceback (most recent call last)" in ended.said:
        return "TRACEBACK", ended.said[-1500:]
    gone = _gone(place) if attack.arguments[:1] == ("train",) else ""
    if gone:
        return "LOST", gone
    found = attack.check(place, ended) if attack.check else None
    if found:
        return found
    if ended.code == 0:
        said = ended.said + place.events()
        told = any(name in said for name in attack.names)
        if attack.harmless or told or _unchanged(attack, place):
            return OK, ""
        return "SILENT", tail
    return (OK, "") if attack.during or attack.shell else _is_clear(attack, ended)


def _is_clear(attack: Attack, ended: Ended) -> tuple[str, str]:
    error = ended.said[ended.said.rfind("Error:") :].strip() if "Error:" in ended.said else ended.said.strip()
    lines = error.splitlines()
    # What a check finds is a page, and not an error.
    most = 1000 if attack.arguments[:2] == ("data", "check") else LINES
    if not lines or len(lines) > most:
        return "UNCLEAR", f"{len(lines)} lines: {error[:600]}"
    if attack.names and not any(name in ended.said for name in attack.names):
        return "UNCLEAR", f"names none of {attack.names}: {error[:600]}"
    return ERROR, error


def _unchanged(attack: Attack, place: Place) -> bool:
    """Whether a run's losses are those of the undisturbed one."""
    losses = place.losses()
    return attack.arguments[:1] == ("train",) and bool(losses) and losses.items() <= place.clean.items()


def _gone(place: Place) -> str:
    """A file of a checkpoint, or the result of a finished run, that the attacked command took away."""
    for path, digest in place.kept.items():
        if not path.is_file() or _digest(path) != digest:
            if path.name in ("best.json", "measured.json"):
                continue
            return f"{path.relative_to(place.root)} is gone or differs"
    finished = '"outcome": "finished"' in place.events().rpartition("\n{")[2]
    if finished and not (place.run / "adapter.safetensors").is_file():
        return "the run says that it is finished, and there is no adapter"
    return ""


def _digests(folder: Path) -> dict[Path, str]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return {path: _digest(path) for path in files if path.stat().st_size < 10_000_000}


def _kept(before: dict[Path, str], after: dict[Path, str]) -> dict[Path, str]:
    """What nothing may take away: the checkpoints that were not spoilt. One that is may be written again."""
    spoilt = {path for path in before if after.get(path) != before[path]}
    folders = {next(part for part in path.parts if part.startswith("step-")) for path in spoilt if "step-" in str(path)}
    return {path: digest for path, digest in after.items() if path not in spoilt and not folders & set(path.parts)}


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _set_traps(place: Place) -> None:
    """A program that picture libraries call for PostScript, which says that it was called."""
    folder = place.root / "path"
    folder.mkdir()
    trap = folder / "gs"
    trap.write_text(f"#!/bin/sh\ntouch {place.ran}\n", encoding="utf-8")
    trap.chmod(0o755)


def _environment(attack: Attack, place: Place) -> dict[str, str]:
    path = f"{place.root / 'path'}:{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    settings = {"PATH": path, "HOME": str(place.root), "HF_HUB_OFFLINE": "1", "COLUMNS": "200", "NO_COLOR": "1"}
    return {**os.environ, **settings, **dict(attack.environment)}


def _forked(attack: Attack, place: Place) -> Ended:
    """Run the command line in a process that is forked from this one."""
    said, started = place.root / "said.txt", time.monotonic()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        os._exit(_become(attack, place, said))
    if attack.during:
        attack.during(place, child)
    code = _wait(child, attack.limit - (time.monotonic() - started))
    hung = code is None
    if hung:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    text = said.read_text(encoding="utf-8", errors="replace") if said.is_file() else ""
    return Ended(code or 0, text, time.monotonic() - started, hung)


def _become(attack: Attack, place: Place, said: Path) -> int:
    """What ``st`` does, in a forked process; its exit code."""
    os.setsid()
    os.chdir(place.root)
    stream = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    empty = os.open(os.devnull, os.O_RDONLY)
    for number, source in ((0, empty), (1, stream), (2, stream)):
        os.dup2(source, number)
    os.environ.clear()
    os.environ.update(_environment(attack, place))
    sys.argv = ["st", *attack.arguments]
    try:
        if attack.before:
            attack.before()
        from st.cli import main

        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    threads = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    for thread in threads:
        if not thread.daemon:
            thread.join()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    return code


def _wait(child: int, seconds: float) -> int | None:
    """The exit code; None where it is still running after so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


def _in_shell(attack: Attack, place: Place) -> Ended:
    """Run a line of bash. What it says is what reaches its own streams, and the files ``out`` and ``err``."""
    started = time.monotonic()
    process = subprocess.Popen(
        ["bash", "-c", attack.shell],
        cwd=place.root,
        env=_environment(attack, place),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    hung = False
    try:
        out, _ = process.communicate(timeout=attack.limit)
    except subprocess.TimeoutExpired:
        hung = True
        os.killpg(process.pid, signal.SIGKILL)
        out, _ = process.communicate()
    logs = [path.read_bytes() for path in (place.root / "out", place.root / "err") if path.is_file()]
    said = b"".join([out, *logs]).decode(errors="replace")
    return Ended(process.returncode, re.sub("\r", "", said), time.monotonic() - started, hung)


def chosen(attacks: Sequence[Attack], words: Sequence[str]) -> list[Attack]:
    """The attacks whose names hold one of the words; all without any."""
    return [attack for attack in attacks if not words or any(word in attack.name for word in words)]
