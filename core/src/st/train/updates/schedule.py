"""Learning-rate schedules: pure functions of the optimizer step, the same on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from st.registrar import StrategyKind

if TYPE_CHECKING:
    from torch.optim import Optimizer


SMALLEST = 1e-9
"""Rates below this are raised to it, so that no schedule switches learning off altogether."""

Rate = Callable[[int, float], float]
"""From (optimizer steps taken, rate at the top) to the rate of the next step."""


SCHEDULE: StrategyKind[Callable[[Optimizer, Any, int], Schedule]] = StrategyKind("schedule")
"""``[schedule] kind``: ``build(optimizer, options, total_steps)``."""


class Schedule:
    """Sets the rate of each of an optimizer's groups from the number of steps taken; holds no other state.

    factor: what all rates are multiplied by, changed where a run is asked to.
    """

    factor: float = 1.0

    def __init__(self, optimizer: Optimizer, rate: Rate) -> None:
        self.optimizer, self.rate = optimizer, rate
        self.tops = [float(group["lr"]) for group in optimizer.param_groups]

    def set(self, step: int) -> tuple[float, ...]:
        """Set the rates for the step that follows ``step`` taken ones; the rates by group."""
        rates = tuple(max(self.rate(step, top) * self.factor, SMALLEST) for top in self.tops)
        for group, lr in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = lr
        return rates


def without_effect(chosen: object, total: int) -> Iterator[str]:
    """Sentences about what a schedule's ``warmup``, ``period`` and ``end`` never do in a run of ``total`` steps."""
    warmup, period = getattr(chosen, "warmup", 0), getattr(chosen, "period", 0)
    if warmup >= total:
        also = " or schedule.end" if hasattr(chosen, "end") else ""
        yield (
            f"schedule.warmup = {warmup} is not over within the {total} steps of the run: the rate never reaches "
            f"optimizer.lr{also}"
        )
    elif 3 * period > 2 * total:
        yield (
            f"schedule.end is never reached: with schedule.period = {period} the rate is at its lowest after "
            f"{3 * period // 2} steps, and the run has {total}"
        )


def rates(schedule: Rate, steps: int, top: float) -> Sequence[float]:
    """The whole curve, for plots and tests: the rate of each of ``steps`` steps."""
    return [max(schedule(step, top), SMALLEST) for step in range(steps)]
