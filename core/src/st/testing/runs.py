"""TinyRun and CliResult: what a run of TinyFamily, and a command, left behind."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from st.testing.examples import example_pixels

TINY = Path(__file__).with_name("subjects") / "tiny.py"

PHOTO_CAPTIONS = ("a red square on a table", "a tree by a river")

RUN_FILE = """
plugins = [{plugins}]
output = {output}
steps = {steps}
batch = {batch}
accumulate = {accumulate}
precision = "fp32"
device = "cpu"

[model]
checkpoint = {checkpoint}

[adapter]
kind = "lora"
rank = 4

[report]
every = 1

[[dataset]]
url = {photos}
resolution = 64
align = 8

{text}
"""


@dataclass(frozen=True, slots=True)
class CliResult:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str


def call_cli(*arguments: object) -> CliResult:
    """Run one command line of ``st`` in this process."""
    from st.cli import run

    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = run([str(argument) for argument in arguments])
    return CliResult(code, out.getvalue(), err.getvalue())


@dataclass(frozen=True, slots=True)
class TinyRun:
    """A finished run of TinyFamily. directory: its output folder."""

    directory: Path
    result: CliResult

    @property
    def outcome(self) -> str:
        """``finished``, ``interrupted`` or ``failed``; '' where the run never said."""
        ends = [event for event in self.events() if "outcome" in event]
        return str(ends[-1]["outcome"]) if ends else ""

    def events(self) -> list[dict[str, Any]]:
        """The event log."""
        return list(_events(self.directory / "events.jsonl"))

    def metrics(self) -> dict[str, list[float]]:
        """Every value of every metric that was logged, in order."""
        found: dict[str, list[float]] = {}
        for event in self.events():
            for name, value in (event.get("metrics") or {}).items():
                found.setdefault(name, []).append(value)
        return found

    def warnings(self, about: str = "") -> list[str]:
        """Warnings and errors of the run that contain a word."""
        grave = [event for event in self.events() if event.get("kind") in ("warning", "error")]
        return [event["text"] for event in grave if about in event["text"]]

    def state(self) -> dict[str, bytes]:
        """The tensors of the last checkpoint, byte for byte: optimizers, learners, networks, plugins."""
        from safetensors.torch import load_file

        newest = max((self.directory / "checkpoints").glob("step-*"))
        return {
            f"{file.stem}/{name}": tensor.view(-1).contiguous().numpy().tobytes()
            for file in sorted((newest / "state").glob("*.safetensors"))
            for name, tensor in load_file(file).items()
        }

    def weights(self) -> dict[str, bytes]:
        """The trained tensors, byte for byte."""
        from safetensors import safe_open

        with safe_open(self.directory / "adapter.safetensors", framework="pt") as file:
            return {name: file.get_tensor(name).contiguous().numpy().tobytes() for name in file.keys()}  # noqa: SIM118


def _events(file: Path) -> Iterator[dict[str, Any]]:
    from st.report.log.events import read_events

    return read_events(file)


@dataclass(slots=True)
class TinyRunner:
    """Trains TinyFamily for a few steps on four pictures; a second on one core. root: an empty folder."""

    root: Path
    count: int = field(default=0)

    def __call__(
        self,
        plugins: Sequence[str] = (),
        text: str = "",
        *,
        steps: int = 3,
        batch: int = 2,
        accumulate: int = 1,
        resume: TinyRun | None = None,
    ) -> TinyRun:
        """Run to the end. Raises AssertionError with what the run printed where it does not exit with 0.

        plugins: installed plugins by name, or ``file.py:Class``. text: more of the run file. resume: a run whose output
        folder is used again.
        """
        run = self.ended(plugins, text, steps=steps, batch=batch, accumulate=accumulate, resume=resume)
        assert run.result.code == 0, f"st train ended with {run.result.code}:\n{run.result.err}\n{run.result.out}"
        return run

    def ended(
        self,
        plugins: Sequence[str] = (),
        text: str = "",
        *,
        steps: int = 3,
        batch: int = 2,
        accumulate: int = 1,
        resume: TinyRun | None = None,
    ) -> TinyRun:
        """The same, however it ends."""
        file = self.file(plugins, text, steps=steps, batch=batch, accumulate=accumulate, resume=resume)
        result = call_cli("train", file, *(["--resume"] if resume else []))
        return TinyRun(resume.directory if resume else file.with_suffix(""), result)

    def file(
        self,
        plugins: Sequence[str] = (),
        text: str = "",
        *,
        steps: int = 3,
        batch: int = 2,
        accumulate: int = 1,
        resume: TinyRun | None = None,
    ) -> Path:
        """Write the run file, for a process of its own; its path. The output folder is named as the file, unless a run
        is resumed."""
        self.count += 1
        directory = resume.directory if resume else self.root / f"run-{self.count}"
        file = self.root / f"run-{self.count}.toml"
        settings = {
            "plugins": ", ".join(_quoted(name) for name in (f"{TINY}:TinyFamily", *plugins)),
            "output": _quoted(directory),
            "checkpoint": _quoted(self._checkpoint()),
            "photos": _quoted(self._photos()),
        }
        counts = {"steps": steps, "batch": batch, "accumulate": accumulate}
        file.write_text(RUN_FILE.format(**settings, **counts, text=text), encoding="utf-8")
        return file

    def _checkpoint(self) -> Path:
        from st.testing.subjects.tiny import TinyFamily

        folder = self.root / "tiny"
        if not folder.exists():
            TinyFamily.tiny(folder)
        return folder

    def _photos(self) -> Path:
        return write_photos(self.root / "photos")


def write_photos(folder: Path, count: int = 4) -> Path:
    """A folder of small pictures of two shapes with captions; the same each time."""
    from PIL import Image

    from st.data.geometry import Geometry

    if not folder.exists():
        folder.mkdir(parents=True)
        for number in range(count):
            pixels = example_pixels(Geometry(64, 64 if number % 2 else 96), number)
            array = (pixels.permute(1, 2, 0).numpy() * 255).astype("uint8")
            Image.fromarray(array).save(folder / f"{number}.png")
            (folder / f"{number}.txt").write_text(PHOTO_CAPTIONS[number % len(PHOTO_CAPTIONS)], encoding="utf-8")
    return folder


def _quoted(value: object) -> str:
    return json.dumps(str(value))
