"""Train the same run with each engine and compare weights; save it on two ranks and go on with others on one and four.

    python tests/engines.py [--engines ddp fsdp zero2 zero3] [--adapters lora full] [--family flux|tiny] [--resume]

Every run recomputes activations, drops tokens, keeps a moving average, validates and evaluates. The reference is one
process without an engine; a step's four samples are shared out over the ranks of the others. A row is one comparison:
the largest difference of any exported weight, over the largest weight.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from safetensors.torch import load_file

from st.testing.runs import write_photos
from st.testing.subjects.tiny import TinyFamily

TINY = Path(sys.modules[TinyFamily.__module__].__file__ or "")
TOLERANCE = 2e-5
"""fp32: sums are taken in another order, and AdamW divides by gradients' sizes, which makes more of the last digit."""

RUN_FILE = """
plugins = ["{family}", "tread", "deepspeed"]
precision = "fp32"
device = "cpu"
[model]
checkpoint = "{root}/model"
[adapter]
kind = "{adapter}"
[optimizer]
lr = 1e-3
epsilon = 1e-6
[clip]
norm = 0.02
[recompute]
every = 1
[average]
decay = 0.9
[tread]
first = 1
last = -1
[validation]
every = 4
at_start = false
prompts = ["a red square"]
resolutions = ["64"]
steps = 2
[evaluation]
every = 4
times = 4
[[dataset]]
name = "train"
url = "{root}/photos"
resolution = 64
align = 16
oversubscribe = true
[[dataset]]
name = "held"
url = "{root}/photos"
role = "evaluation"
resolution = 64
align = 16
[cache]
url = "{root}/cache"
[report]
every = 1
console = "off"
"""


@dataclass(frozen=True)
class Case:
    """One run. ranks: processes. name: of its output folder."""

    name: str
    engine: str
    ranks: int


class Trial:
    """Runs of one adapter kind in a folder of its own."""

    def __init__(self, root: Path, family: str, adapter: str, steps: int) -> None:
        self.root, self.adapter, self.steps = root, adapter, steps
        named = str(TINY) + ":TinyFamily" if family == "tiny" else family
        self.file = root / f"{adapter}.toml"
        self.file.write_text(RUN_FILE.format(family=named, root=root, adapter=adapter), encoding="utf-8")

    def run(self, case: Case, *, steps: int = 0, resume: bool = False, extra: dict[str, object] | None = None) -> Path:
        """Train to the end; the output folder."""
        output = self.root / f"{self.adapter}-{case.name}"
        settings = {
            "ranks.engine": case.engine,
            "ranks.processes": case.ranks,
            "batch": 4 // case.ranks,
            "steps": steps or self.steps,
            **(extra or {}),
        }
        command = [sys.executable, "-m", "st.cli", "train", str(self.file), f"--output={output}"]
        command += [f"--set={key}={value}" for key, value in settings.items()]
        command += ["--resume", "--accept=batch"] if resume else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise AssertionError(f"{case.name} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return output

    def difference(self, output: Path, expected: Path) -> float:
        """The largest of any exported weight, over the largest weight."""
        ours, theirs = _weights(output), _weights(expected)
        assert ours.keys() == theirs.keys(), sorted(ours.keys() ^ theirs.keys())
        largest = max(float(theirs[name].abs().max()) for name in theirs)
        return max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) / largest


def _weights(output: Path) -> dict[str, object]:
    found = {}
    for file in [output / "adapter.safetensors", *sorted((output / "model").rglob("*.safetensors"))]:
        if file.exists():
            found |= {f"{file.name}:{name}": tensor for name, tensor in load_file(file).items()}
    return found


def metrics(output: Path) -> dict[str, list[float]]:
    """What was logged, by name, in order."""
    found: dict[str, list[float]] = {}
    for line in (output / "events.jsonl").read_text(encoding="utf-8").splitlines():
        for name, value in (json.loads(line).get("metrics") or {}).items():
            found.setdefault(name, []).append(value)
    return found


def prepare(root: Path, family: str) -> None:
    """The tiny model and the pictures of every run."""
    if family == "tiny":
        TinyFamily.tiny(root / "model")
    else:
        import_module(f"st_{family}").Flux.tiny(root / "model")
    write_photos(root / "photos", count=8)


def rows(trial: Trial, engines: list[str], ranks: list[int], *, resume: bool) -> Iterator[tuple[str, float]]:
    """(what was compared, difference) of each case.

    resume: also save in the middle, on two ranks, and go on with the same engine on one and four and the next on two.
    """
    expected = trial.run(Case("reference", "single", 1))
    for place, engine in enumerate(engines):
        for count in ranks:
            output = trial.run(Case(f"{engine}-{count}", engine, count))
            yield f"{trial.adapter}: {engine} on {count} against one process", trial.difference(output, expected)
        if not resume:
            continue
        onward = [(engine, 1), (engine, 4), (engines[(place + 1) % len(engines)], 2)]
        half = trial.run(Case(f"{engine}-half", engine, 2), steps=trial.steps // 2)
        for other, count in onward:
            name = f"{engine}-then-{other}-{count}"
            shutil.copytree(half, trial.root / f"{trial.adapter}-{name}")
            output = trial.run(Case(name, other, count), resume=True)
            what = f"{trial.adapter}: saved by {engine} on 2, then {other} on {count}"
            yield what, trial.difference(output, expected)


def main() -> int:
    """Print a row per comparison; the exit status is 1 where one is above the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", default=["ddp", "fsdp", "zero2", "zero3"])
    parser.add_argument("--adapters", nargs="+", default=["lora", "full"])
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--family", choices=("flux", "tiny"), default="flux")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--resume", action="store_true")
    arguments = parser.parse_args()
    worst = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        prepare(Path(scratch), arguments.family)
        for adapter in arguments.adapters:
            trial = Trial(Path(scratch), arguments.family, adapter, arguments.steps)
            started = time.monotonic()
            for what, difference in rows(trial, arguments.engines, arguments.ranks, resume=arguments.resume):
                worst = max(worst, difference)
                print(f"{difference:9.1e}  {time.monotonic() - started:6.1f} s  {what}", flush=True)
                started = time.monotonic()
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
