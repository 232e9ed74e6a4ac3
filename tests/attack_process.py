"""Attacks on the process: signals, streams, disks, folders that vanish, and secrets that must stay in memory."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from attack_bench import Attack, Ended, Place, nothing

CANARY = "canary-7d1e"
MANY = ("train", "run.toml", "--set", "steps=2000", "--output", "new")


def attacks(_base: Path, rng: random.Random) -> list[Attack]:
    """Every attack on a process."""
    return [*_signals(rng), *_streams(), *_disks(), *_secrets()]


def _signals(rng: random.Random) -> list[Attack]:
    found: list[Attack] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        moments: dict[str, Callable[[Place, int], bool]] = {
            "at start": lambda place, child: True,
            "while encoding": lambda place, child: "encoding" in _said(place),
            "while training": lambda place, child: "step 1/" in _said(place),
            "while saving": lambda place, child: any((place.root / "new" / "checkpoints").glob(".partial-*")),
        }
        for name, due in moments.items():
            for times in (1, 2):
                pause = rng.uniform(0, 0.05)
                during = _sending(number, due, times, pause)
                twice = " twice" if times == 2 else ""
                label = f"signals/{signal.Signals(number).name}{twice} {name}"
                found.append(Attack(label, nothing, MANY, during=during, check=_says_what_is_true, limit=60))
    return found


def _said(place: Place) -> str:
    file = place.root / "said.txt"
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def _sending(
    number: int, due: Callable[[Place, int], bool], times: int, pause: float
) -> Callable[[Place, int], object]:
    def send(place: Place, child: int) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not due(place, child) and Path(f"/proc/{child}").exists():
            time.sleep(0.001)
        for _ in range(times):
            time.sleep(pause)
            os.kill(child, number)

    return send


def _says_what_is_true(place: Place, ended: Ended) -> tuple[str, str] | None:
    """4 only where a checkpoint exists, which can be gone on with; else death by the signal or its number."""
    steps = sorted((place.root / "new" / "checkpoints").glob("step-*"))
    if ended.code == 4 and not steps:
        return "LOST", "it says that it saved, and there is no checkpoint"
    if ended.code == 0:
        return "SILENT", "the signal did not end it"
    if ended.code not in (4, 1) and not (ended.code > 128 or ended.code < 0):
        return "UNCLEAR", f"exit code {ended.code}: {ended.said[-400:]}"
    return None


def _streams() -> list[Attack]:
    go = "st train run.toml --output new"
    lines = {
        "stdout and stderr into head": f"{go} 2>&1 | head -1",
        "stderr into a pipe that ends": f"{go} 2> >(head -c 10 >/dev/null)",
        "stdout closed": f"{go} >&- 2>err",
        "stderr closed": f"{go} 2>&- >out",
        "all closed": f"{go} <&- >&- 2>&-",
        "a full device": f"{go} >/dev/full 2>/dev/full",
        "a narrow terminal": f"COLUMNS=1 TERM=dumb {go}",
        "no language": f"LC_ALL=C PYTHONUTF8=0 PYTHONIOENCODING=ascii {go}",
        "no home": f"env -u HOME -u TERM {go}",
    }
    return [Attack(f"streams/{name}", nothing, shell=line, limit=90, check=_is_trained) for name, line in lines.items()]


def _is_trained(place: Place, ended: Ended) -> tuple[str, str] | None:
    if not (place.root / "new" / "adapter.safetensors").is_file():
        return "LOST", f"no adapter; {ended.code}: {ended.said[-600:]}"
    return None


def _disks() -> list[Attack]:
    def limited(size: int) -> Callable[[], object]:
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    def gone(what: str, sign: str) -> Callable[[Place, int], object]:
        def remove(place: Place, child: int) -> None:
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline and sign not in _said(place) and Path(f"/proc/{child}").exists():
                time.sleep(0.002)
            shutil.rmtree(place.root / what, ignore_errors=True)

        return remove

    def few_files() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))

    new = ("train", "run.toml", "--output", "new")
    told = ("new", "space", "large", "written", "File", "Errno", "files")
    found = [
        Attack(f"disks/no file above {size} bytes", nothing, new, told, before=limited(size), harmless=False)
        for size in (200, 500, 2000, 10_000, 25_000, 100_000)
    ]
    found.append(Attack("disks/40 open files", nothing, new, told, before=few_files, harmless=True))
    for what in ("new", "new/checkpoints", "new/cache", "photos", "tiny"):
        for sign in ("encoding", "training from", "step 1/"):
            label = f"disks/{what} removed at {sign!r}"
            many = ("train", "run.toml", "--output", "new", "--set", "steps=40")
            found.append(Attack(label, nothing, many, (what,), during=gone(what, sign), harmless=True))
    shared = "mkdir new && mount -t tmpfs -o size=%s tmpfs new && st train run.toml --output new; "
    shared += "code=$?; umount new; exit $code"
    for size in ("64k", "300k"):
        shell = f"unshare -rm bash -c '{shared % size}'"
        found.append(Attack(f"disks/a full disk of {size}", nothing, shell=shell, limit=60))
    drop = "setpriv --reuid=65534 --clear-groups" if os.getuid() == 0 else ""
    ro = f"mkdir new; chmod 555 new; chmod -R a+rX . ; {drop} st train run.toml --output new"
    found.append(Attack("disks/a folder that is not ours", nothing, shell=ro, limit=60))
    return found


def _secrets() -> list[Attack]:
    places = {
        "a name": ('name = "{env:CANARY}"\n', ""),
        "a prefix of captions": ("", 'caption_prefix = "{env:CANARY} "'),
        "a prompt": ("", 'instance_prompt = "{env:CANARY}"'),
        "an unknown option": ("", 'no_such = "{env:CANARY}"'),
        "a value of another kind": ('steps_ = "{env:CANARY}"\n', ""),
        "a number": ("", 'repeats = "{env:CANARY}"'),
        "a choice": ("", 'window = "{env:CANARY}"'),
        "a folder": ("", 'masks = "{env:CANARY}"'),
        "a plugin": ('extra = "{env:CANARY}"\n', ""),
        "credentials in an address": ("", 'masks = "s3://AKIA:{env:CANARY}@bucket/x"'),
        "an address": ("", 'masks = "https://u:{env:CANARY}@h/x?token={env:CANARY}"'),
    }
    found: list[Attack] = []
    for name, (text, dataset) in places.items():

        def spoil(place: Place, text: str = text, dataset: str = dataset) -> None:
            place.anew()
            place.write_run_file(text, dataset)

        for command in (("train", "run.toml"), ("train", "run.toml", "--dry-run"), ("data", "check", "run.toml")):
            given = (("CANARY", CANARY),)
            label = f"secrets/{name} ({' '.join(command[:1] + command[2:])})"
            found.append(Attack(label, spoil, command, harmless=True, environment=given, check=_keeps_secrets))
    return found


def _keeps_secrets(place: Place, ended: Ended) -> tuple[str, str] | None:
    files = [path for path in place.root.rglob("*") if path.is_file()]
    written = (place.root / "run.toml").read_text(encoding="utf-8")
    if "caption_prefix" in written or "instance_prompt" in written:
        # Captions are data: what is encoded lies beside its text, so that it can be told why an entry is there.
        files = [path for path in files if "entries" not in path.parts]
    holding = [str(path) for path in files if CANARY.encode() in path.read_bytes() or CANARY in path.name]
    return ("LEAKED", f"a secret is in {holding}") if holding else None
