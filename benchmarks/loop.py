"""The training loop over a hand-written loop that does the same work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from figure import Bar, Figure, median, quartiles
from prepared import Prepared
from processes import Turn, alternating

GROUP = "loop"
STEPS = 10
"""Optimizer steps of a turn. A run reads its losses every ten steps, so that each turn has one reading."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of training. size: the denoiser's, where it is not the one that is measured. turns: of each program."""

    adapter: str
    precision: str
    batch: int
    size: str = ""
    turns: int = 12

    @property
    def name(self) -> str:
        return f"{self.adapter} training, {self.precision}, batch {self.batch}"


KINDS = (Kind("full", "fp32", 8), Kind("lora", "fp32", 8), Kind("lora", "bf16", 8))
TINY = Kind("full", "fp32", 8, "tiny", turns=40)
TOY = Kind("full", "fp32", 8, turns=2)


def measure(scratch: Path, quick: bool, made: Prepared) -> list[Figure]:
    log = scratch / "log.txt"
    if quick:
        turns = _turns(made, TOY, log)
        return [_ratio(TOY, turns), _overhead(TOY, turns)]
    return [*(_ratio(kind, _turns(made, kind, log)) for kind in KINDS), _overhead(TINY, _turns(made, TINY, log))]


def _turns(made: Prepared, kind: Kind, log: Path) -> list[Turn]:
    settings = {"adapter": kind.adapter, "precision": kind.precision, "size": kind.size}
    file = made.run_file(f"{kind.adapter}-{kind.precision}{kind.size}", batch=kind.batch, **settings)
    floor = made.raw_case("raw", kind.batch, STEPS, **settings)
    return alternating(floor, ("loop", "st", [str(file), STEPS]), kind.turns, log)


def _ratio(kind: Kind, turns: list[Turn]) -> Figure:
    ratios = [turn.ours / turn.floor for turn in turns]
    low, high = quartiles(ratios)
    over = median([1e6 * (turn.ours - turn.floor) for turn in turns])
    return Figure(
        GROUP,
        f"training loop, {kind.name}",
        median(ratios),
        "x",
        Bar(1.02),
        f"{1e3 * median([turn.floor for turn in turns]):.1f} ms",
        f"{1e3 * median([turn.ours for turn in turns]):.1f} ms",
        f"{over:+,.0f} us a step; half of the {len(turns)} turns of {STEPS} steps lie between {low:.3f} and {high:.3f}",
    )


def _overhead(kind: Kind, turns: list[Turn]) -> Figure:
    over = [1e6 * (turn.ours - turn.floor) for turn in turns]
    low, high = quartiles(over)
    return Figure(
        GROUP,
        f"overhead of a training step, {kind.name}",
        median(over),
        "us",
        None,
        f"{1e3 * median([turn.floor for turn in turns]):.1f} ms",
        f"{1e3 * median([turn.ours for turn in turns]):.1f} ms",
        "on a denoiser of 0.1 M weights, where it stands out of the noise; all threads, making the batch included; "
        f"half of the turns lie between {low:,.0f} and {high:,.0f} us",
    )


def raw_turns(cached: str, checkpoint: str, adapter: str, precision: str, batch: int, steps: int) -> None:
    """The bare loop, until its input ends."""
    from stepclock import report_turns

    report_turns(steps)
    from raw_loop import Raw, train

    train(Raw(cached, checkpoint, adapter, precision, batch), 10**9)


def st_turns(run_file: str, steps: int) -> None:
    """A run of ``st``, until its input ends."""
    from stepclock import report_turns

    report_turns(steps)
    from st.cli import run

    run(["train", run_file])


CASES: dict[str, Callable[..., None]] = {"raw": raw_turns, "st": st_turns}
