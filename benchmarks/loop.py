"""The training loop over a hand-written loop that does the same work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from figure import Bar, Figure, median, quartiles
from prepared import Prepared, raw_case
from processes import alternating

GROUP = "loop"
KINDS = (("full", "fp32", 8), ("lora", "fp32", 8), ("lora", "bf16", 8))
STEPS = 10
"""Optimizer steps of a turn. A run reads its losses every ten steps, so that each turn has one reading."""


def measure(scratch: Path, quick: bool, made: Prepared) -> list[Figure]:
    figures = []
    for adapter, precision, batch in KINDS[: 1 if quick else None]:
        name = f"{adapter}-{precision}-{batch}"
        file = made.run_file(name, adapter=adapter, precision=precision, batch=batch)
        floor = raw_case(made, "raw", batch, STEPS, adapter=adapter, precision=precision)
        ours = ("loop", "st", [str(file), STEPS])
        found = alternating(floor, ours, 2 if quick else 12, scratch / "log.txt")
        ratios = [turn.ours / turn.floor for turn in found]
        over = [1e6 * (turn.ours - turn.floor) for turn in found]
        low, high = quartiles(ratios)
        figures.append(
            Figure(
                GROUP,
                f"training loop, {adapter} training, {precision}, batch {batch}",
                median(ratios),
                "x",
                Bar(1.02),
                f"{1e3 * median([turn.floor for turn in found]):.1f} ms",
                f"{1e3 * median([turn.ours for turn in found]):.1f} ms",
                f"{median(over):+,.0f} us a step; half of the {len(found)} turns of {STEPS} steps lie between "
                f"{low:.3f} and {high:.3f}",
            )
        )
    return figures


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
