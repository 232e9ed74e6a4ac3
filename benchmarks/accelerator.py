"""Training at real sizes on an accelerator, with random weights: seconds per step, memory, how busy the device is.

    python benchmarks/accelerator.py                      every case; writes docs/benchmarks-accelerator.md
    python benchmarks/accelerator.py --only flux          those whose name holds this, nothing is written
    python benchmarks/accelerator.py --tiny --only flux   at toy sizes on any device, to see that everything runs

Each case is a process of its own, and beside each stands a bare loop in the same process around the same denoiser.
Without an accelerator the page says "not measured".
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks-accelerator.md"
COMMAND = "python benchmarks/accelerator.py"
MARK = "@case "
NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class Case:
    """One training. size: (height, width) in pixels. published: what another trainer's page says of the same work."""

    family: str
    size: tuple[int, int]
    batch: int = 1
    frames: int = 1
    recompute: bool = False
    compiled: bool = False
    quantizer: str = ""
    targets: str = ""
    published: str = ""

    @property
    def name(self) -> str:
        edge = f"{self.size[1]} px" if self.size[0] == self.size[1] else f"{self.size[1]}x{self.size[0]}"
        parts = [self.family, edge, f"batch {self.batch}"]
        parts += [f"{self.frames} frames"] * (self.frames > 1) + [f"LoRA on {self.targets}"] * bool(self.targets)
        parts += (
            ["checkpointing"] * self.recompute + ["compiled"] * self.compiled + [self.quantizer] * bool(self.quantizer)
        )
        return ", ".join(parts)


def cases() -> Iterator[Case]:
    """Everything that is measured."""
    for family in ("flux", "sdxl"):
        for edge in (512, 1024):
            for batch in (1, 4):
                for recompute, compiled in ((False, False), (True, False), (False, True), (True, True)):
                    same = family == "sdxl" and edge == 1024 and batch == 1 and not recompute and not compiled
                    told = "0.606 s a step" if same else ""
                    yield Case(family, (edge, edge), batch, recompute=recompute, compiled=compiled, published=told)
    for recompute in (False, True):
        yield Case("wan", (480, 832), frames=81, recompute=recompute)
    memory = {"": 30, "int8-quanto": 18, "int4-quanto": 13, "int2-quanto": 9, "nf4-bnb": 9}
    for quantizer, told in memory.items():
        all_ = "all+ffs"
        yield Case("flux", (512, 512), recompute=True, quantizer=quantizer, targets=all_, published=f"{told} GB")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="cases whose name holds all of these")
    parser.add_argument("--tiny", action="store_true", help="toy sizes; figures mean nothing")
    parser.add_argument("--steps", type=int, default=10, help="steps that are timed, after three that are not")
    parser.add_argument("--peak", type=float, default=989.0, help="dense bf16 TFLOP/s of the device, for utilisation")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.case:
        from accelerator_case import measure

        fields = json.loads(asked.case)
        case = Case(**{**fields, "size": tuple(fields["size"])})
        print(MARK + json.dumps(measure(case, asked.steps, tiny=asked.tiny)), flush=True)
        return 0
    wanted = [case for case in cases() if all(word in case.name for word in asked.only)]
    device = _device()
    rows: list[tuple[Case, Mapping[str, float] | str]] = []
    for case in wanted:
        found = _child(case, asked) if asked.tiny or device else NOT_MEASURED
        rows.append((case, found))
        print(_row(case, found, _flops(case, rows) / (asked.peak * 1e12)), flush=True)
    if not asked.only and not asked.tiny:
        PAGE.write_text(page(rows, device, asked.peak), encoding="utf-8")
        print(f"wrote {PAGE}")
    return 1 if asked.tiny and any(isinstance(found, str) for _, found in rows) else 0


def _device() -> str:
    """The accelerator's name, "" where there is none."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def _child(case: Case, asked: argparse.Namespace) -> Mapping[str, float] | str:
    """What a case measured, or why it did not."""
    command = [sys.executable, __file__, "--case", json.dumps(asdict(case)), "--steps", str(asked.steps)]
    done = subprocess.run([*command, *(["--tiny"] if asked.tiny else [])], capture_output=True, text=True)
    for line in done.stdout.splitlines():
        if line.startswith(MARK):
            found: Mapping[str, float] = json.loads(line.removeprefix(MARK))
            return found
    if "OutOfMemoryError" in done.stderr:
        return "out of memory"
    last = done.stderr.strip().splitlines()
    return f"failed: {last[-1] if last else done.returncode}"


def page(rows: Sequence[tuple[Case, Mapping[str, float] | str]], device: str, peak: float) -> str:
    """The page of the docs."""
    measured = f"Measured on {date.today().isoformat()} on {device}"
    where = measured if device else "Not measured yet, since no accelerator was at hand; to be measured"
    lines = [
        "# Benchmarks on an accelerator",
        "",
        f"{where}, with `{COMMAND}`.",
        "",
        "Real architectures with random weights, LoRA of rank 16 in bf16. `bare` is a loop in the same process around",
        "the same denoiser: noise, forward, backward, clip, AdamW. Utilisation is a step's arithmetic, less what is",
        f"computed again, over what the device could do in that time ({peak:g} TFLOP/s). `published` is what another",
        "trainer says of the same work.",
        "",
        "| what | s a step | bare | ratio | peak memory | utilisation | published |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(_row(case, found, _flops(case, rows) / (peak * 1e12)) for case, found in rows),
        "",
    ]
    return "\n".join(lines)


def _flops(case: Case, rows: Sequence[tuple[Case, Mapping[str, float] | str]]) -> float:
    """Of a step of the same work, counted where nothing is computed again; 0 where no such row was measured."""
    alike = [
        found["flops"]
        for other, found in rows
        if not isinstance(found, str)
        and (other.family, other.size, other.batch) == (case.family, case.size, case.batch)
    ]
    return max(alike, default=0.0)


def _row(case: Case, found: Mapping[str, float] | str, ideal: float) -> str:
    """ideal: seconds that the arithmetic of a step takes where the device does nothing else."""
    if isinstance(found, str):
        return f"| {case.name} | {found} | | | | | {case.published} |"
    cells = (
        case.name,
        f"{found['seconds']:.3f}",
        f"{found['bare']:.3f}",
        f"{found['seconds'] / found['bare']:.3f}",
        f"{found['memory'] / 2**30:.1f} GiB" if found["memory"] else "",
        f"{100 * ideal / found['seconds']:.1f} %" if found["memory"] and ideal else "",
        case.published,
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
