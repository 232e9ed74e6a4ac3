"""Kill a run with SIGKILL at random moments, resume it, and compare what it ends with to a run that nobody killed.

    python tests/crash.py --kills 100 [--steps 60] [--size small] [--seed 0]

Each attempt starts ``st train --resume`` in a process of its own and kills it after a random time, or while a
checkpoint is being written (every third attempt). After each kill the newest complete checkpoint must verify. A run
that reaches its last step is compared byte for byte with the undisturbed one; then the next begins, until so many kills
were made.
"""

from __future__ import annotations

import argparse
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

from st.errors import CheckpointDamaged
from st.train.saving.vault import Vault

RUN_FILE = """
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


def main() -> int:
    """Print one JSON line with the counts; the exit status is 1 where a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--size", default="small")
    parser.add_argument("--photos", type=Path, help="a folder of captioned pictures; made where it is not given")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        return _Trial(arguments, Path(scratch)).run()


class _Trial:
    def __init__(self, arguments: argparse.Namespace, scratch: Path) -> None:
        self.scratch, self.kills, self.rng = scratch, arguments.kills, random.Random(arguments.seed)
        photos = arguments.photos or scratch / "photos"
        if arguments.photos is None:
            script = Path(__file__).parents[1] / "demo" / "photographs.py"
            subprocess.run([sys.executable, str(script), str(photos)], check=True, stdout=subprocess.DEVNULL)
            photos = photos / "base"
        self.file = scratch / "run.toml"
        self.file.write_text(RUN_FILE.format(steps=arguments.steps, size=arguments.size, photos=photos))
        self.counts = {"kills": 0, "while_saving": 0, "before_first_step": 0, "runs": 0, "identical": 0}

    def run(self) -> int:
        started = time.monotonic()
        undisturbed = self._finish(self.scratch / "undisturbed")
        self.whole_seconds = time.monotonic() - started
        expected = _weights(undisturbed)
        broken: list[str] = []
        while self.counts["kills"] < self.kills and not broken:
            output = self.scratch / f"killed-{self.counts['runs']}"
            self._torture(output, broken)
            self._finish(output)
            self.counts["runs"] += 1
            if _weights(output) == expected:
                self.counts["identical"] += 1
            else:
                broken.append(f"run {self.counts['runs']} ended with other weights than the undisturbed run")
            shutil.rmtree(output)
        print(json.dumps({**self.counts, "broken": broken, "seconds": round(time.monotonic() - started)}))
        return 1 if broken or self.counts["identical"] != self.counts["runs"] else 0

    def _torture(self, output: Path, broken: list[str]) -> None:
        """Kill and resume until the run is near its end or enough kills were made."""
        while self.counts["kills"] < self.kills:
            process = subprocess.Popen(self._command(output), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            while_saving = self.rng.random() < 1 / 3 and self._wait_for_save(process, output)
            if not while_saving:
                self._wait(process, self.rng.uniform(0.0, self.whole_seconds))
            if process.poll() is not None:
                error = process.stderr.read().decode() if process.stderr else ""
                if process.returncode:
                    broken.append(f"a resumed run ended with {process.returncode}: {error[-2000:]}")
                return
            process.kill()
            process.wait()
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

    def _finish(self, output: Path) -> Path:
        subprocess.run(self._command(output), check=True, stdout=subprocess.DEVNULL)
        return output

    def _command(self, output: Path) -> list[str]:
        command = [sys.executable, "-m", "st.cli", "train", str(self.file), "--resume"]
        return [*command, "--set", f"output={output}", "--set", f"cache.url={self.scratch / 'cache'}"]


def _weights(output: Path) -> str:
    """A digest of every exported file of a finished run, by name."""
    files = sorted((output / "model").rglob("*")) or sys.exit(f"{output} holds no exported model")
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode())
        digest.update(path.read_bytes() if path.is_file() else b"")
    return digest.hexdigest()


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    raise SystemExit(main())
