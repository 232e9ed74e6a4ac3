"""Kill a run with SIGKILL at random moments, resume it, and compare what it ends with to a run that nobody killed.

    python tests/crash.py --kills 100 [--steps 60] [--size small] [--seed 0] [--kinds model adapter ranks]

Runs of three kinds take turns: every weight with a moving average; a LoRA over an int8 base with Prodigy, two data
sets, held-out samples and the best checkpoint kept; and the LoRA on two processes, of which one is killed.

Each attempt starts ``st train --resume`` in a process of its own and kills it after a random time, or while a
checkpoint is being written (every third attempt). After each kill the newest complete checkpoint must verify. A run
that reaches its last step is compared byte for byte with the undisturbed one; then the next begins, until so many kills
were made.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from st.errors import CheckpointDamaged
from st.train.saving.vault import Vault

MODEL = """
plugins = ["pocket"]
steps = {steps}
batch = 4
precision = "fp32"
[model]
size = "{size}"
[adapter]
kind = "full"
[average]
decay = 0.9
[weighting]
kind = "inverse_square"
[checkpoint]
every = 3
keep = 2
[[dataset]]
url = "{photos}"
resolution = 64
align = 16
[evaluation]
every = 10
"""

ADAPTER = """
plugins = ["pocket", "optimizers", "quanto"]
steps = {steps}
batch = {batch}
precision = "fp32"
device = "cpu"
[model]
checkpoint = "{base}"
[adapter]
kind = "lora"
rank = 4
[quantizer]
kind = "int8-quanto"
[optimizer]
kind = "prodigy"
[average]
decay = 0.9
[metadata]
keep = "none"
[ranks]
processes = {processes}
[checkpoint]
every = 5
keep = 2
best = "eval/held-out"
[evaluation]
every = 3
times = 4
samples = 4
[[dataset]]
name = "large"
url = "{photos}"
resolution = 64
align = 16
weight = 3
[[dataset]]
name = "small"
url = "{photos}"
resolution = 32
align = 16
[[dataset]]
name = "held-out"
role = "evaluation"
url = "{photos}"
resolution = 64
align = 16
"""

KINDS = ("model", "adapter", "ranks")
RANKS_END_WITHIN = 60.0
"""Seconds in which a run ends, one of whose processes was killed."""


def main() -> int:
    """Print one JSON line with the counts; the exit status is 1 where a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--size", default="small")
    parser.add_argument("--photos", type=Path, help="a folder of captioned pictures; made where it is not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="of runs, taking turns")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        return _Trial(arguments, Path(scratch)).run()


class _Trial:
    def __init__(self, arguments: argparse.Namespace, scratch: Path) -> None:
        self.scratch, self.kills, self.rng = scratch, arguments.kills, random.Random(arguments.seed)
        self.kinds: list[str] = arguments.kinds
        photos = arguments.photos or scratch / "photos"
        if arguments.photos is None:
            script = Path(__file__).parents[1] / "demo" / "photographs.py"
            subprocess.run([sys.executable, str(script), str(photos)], check=True, stdout=subprocess.DEVNULL)
            photos = photos / "base"
        told = {"steps": arguments.steps, "size": arguments.size, "photos": photos}
        told["base"] = scratch / "undisturbed-model" / "model"
        self._write("model", MODEL, **told)
        self._write("adapter", ADAPTER, batch=4, processes=1, **told)
        self._write("ranks", ADAPTER, batch=2, processes=2, **told)
        names = ("kills", "of_one_rank", "while_saving", "before_first_step", "runs", "identical")
        self.counts = dict.fromkeys(names, 0)

    def _write(self, kind: str, text: str, **told: object) -> None:
        (self.scratch / f"{kind}.toml").write_text(text.format(**told))

    def run(self) -> int:
        started = time.monotonic()
        expected, self.whole_seconds = {}, {}
        # The adapters' base is what the undisturbed training of every weight ended with.
        for kind in dict.fromkeys(["model", *self.kinds]):
            began = time.monotonic()
            expected[kind] = _weights(self._finish(kind, self.scratch / f"undisturbed-{kind}"))
            self.whole_seconds[kind] = time.monotonic() - began
        broken: list[str] = []
        while self.counts["kills"] < self.kills and not broken:
            kind = self.kinds[self.counts["runs"] % len(self.kinds)]
            output = self.scratch / f"killed-{self.counts['runs']}"
            self._torture(kind, output, broken)
            if broken:
                break
            self._finish(kind, output)
            self.counts["runs"] += 1
            if _weights(output) == expected[kind]:
                self.counts["identical"] += 1
            else:
                broken.append(f"run {self.counts['runs']} ({kind}) ended with other weights than the undisturbed run")
            shutil.rmtree(output)
        print(json.dumps({**self.counts, "broken": broken, "seconds": round(time.monotonic() - started)}))
        return 1 if broken or self.counts["identical"] != self.counts["runs"] else 0

    def _torture(self, kind: str, output: Path, broken: list[str]) -> None:
        """Kill and resume until the run is near its end, or enough kills were made of it or of all."""
        mine = 0
        most = max(1, self.kills // (2 * len(self.kinds)))
        while self.counts["kills"] < self.kills and mine < most:
            command = self._command(kind, output)
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            while_saving = self.rng.random() < 1 / 3 and self._wait_for_save(process, output)
            if not while_saving:
                self._wait(process, self.rng.uniform(0.0, self.whole_seconds[kind]))
            if process.poll() is not None:
                error = process.stderr.read().decode() if process.stderr else ""
                if process.returncode:
                    broken.append(f"a resumed run ({kind}) ended with {process.returncode}: {error[-2000:]}")
                return
            if kind == "ranks" and self.rng.random() < 0.7:
                self.counts["of_one_rank"] += _kill_a_rank(process, self.rng, broken)
            else:
                process.kill()
            process.communicate()
            mine += 1
            self.counts["kills"] += 1
            self.counts["while_saving"] += while_saving
            vault = Vault(output / "checkpoints")
            steps = vault.steps()
            self.counts["before_first_step"] += not steps
            if steps:
                try:
                    vault.verify(steps[-1])
                except CheckpointDamaged as error:
                    broken.append(str(error))
            if broken:
                return

    def _wait_for_save(self, process: subprocess.Popen[bytes], output: Path) -> bool:
        """Until a checkpoint is half written."""
        skip = self.rng.randrange(3)
        seen: set[str] = set()
        while process.poll() is None:
            for partial in (output / "checkpoints").glob(".partial-*"):
                seen.add(partial.name)
                if len(seen) > skip:
                    time.sleep(self.rng.uniform(0, 0.1))
                    return process.poll() is None
            time.sleep(0.002)
        return False

    def _wait(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)

    def _finish(self, kind: str, output: Path) -> Path:
        subprocess.run(self._command(kind, output), check=True, stdout=subprocess.DEVNULL)
        return output

    def _command(self, kind: str, output: Path) -> list[str]:
        command = [sys.executable, "-m", "st.cli", "train", str(self.scratch / f"{kind}.toml"), "--resume"]
        return [*command, "--set", f"output={output}", "--set", f"cache.url={self.scratch / 'cache'}"]


def _kill_a_rank(launcher: subprocess.Popen[bytes], rng: random.Random, broken: list[str]) -> bool:
    """Kill one of the processes below the launcher, which must then end by itself. False where there is none yet."""
    below = psutil.Process(launcher.pid).children(recursive=True)
    if not below:
        launcher.kill()
        return False
    victim = rng.choice(below)
    with contextlib.suppress(psutil.NoSuchProcess):
        victim.kill()
    try:
        launcher.wait(timeout=RANKS_END_WITHIN)
    except subprocess.TimeoutExpired:
        broken.append(f"a run of which one rank was killed goes on after {RANKS_END_WITHIN} s")
        launcher.kill()
    return True


def _weights(output: Path) -> str:
    """A digest of every exported file of a finished run, by name."""
    whole = output / "model"
    files = sorted(whole.rglob("*")) if whole.exists() else sorted(output.glob("*.safetensors"))
    if not files:
        sys.exit(f"{output} holds nothing that was exported")
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode())
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    raise SystemExit(main())
