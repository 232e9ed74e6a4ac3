"""The loop. Read this first: everything a run does happens in, before or after these lines."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from time import perf_counter
from typing import TYPE_CHECKING

from st.progress import Outcome
from st.report.stats import StepStats

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from st.diffusion.objective import Batch
    from st.train.parts.run import Run
    from st.train.parts.step import Step


@dataclass(frozen=True, slots=True)
class Announce:
    """Whom the loop tells.

    step_end: after each optimizer step. stop_requested: asked after each; True ends the loop.
    """

    step_end: Callable[[StepStats], None]
    stop_requested: Callable[[], bool]


def train(run: Run, step: Step, batches: Iterator[Batch], announce: Announce) -> Outcome:
    """Take optimizer steps until the budget is spent or a stop is asked for."""
    accumulate = run.config.accumulate
    while run.progress.step < run.total_steps:
        stats = StepStats()
        started = perf_counter()
        for batch in islice(batches, accumulate):
            waited = perf_counter()
            draws = run.draws(batch)
            noised = step.noise(batch, draws)
            with step.scope(noised, batch):
                prediction = step.predict(noised, batch)
                losses = step.loss(prediction, noised, batch)
                step.backward(losses, accumulate)
            stats.add(losses, batch)  # stays on the device: no synchronisation here
            computed = perf_counter()
            stats.spent("data", waited - started)
            stats.spent("compute", computed - waited)
            started = computed
        stats.close(step.update())  # average over ranks, clip, optimizer, schedule, moving average; zero the gradients
        stats.spent("update", perf_counter() - started)
        run.progress.step += 1
        run.progress.samples += stats.samples * run.ranks.data
        announce.step_end(stats)
        if announce.stop_requested():
            return Outcome.INTERRUPTED
    return Outcome.FINISHED
