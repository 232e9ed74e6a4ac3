"""A technique in one file, with a state of its own: later steps count more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import st


class Drift:
    """Multiply the loss of each step by one more than that of the step before."""

    class Options(st.Options):
        growth: float = 1.0
        """How much is added to the factor after each step."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.factor = 1.0

    @st.hookimpl
    def st_step(self, run: st.Run) -> st.StepWrapper:
        def wrap(step: st.Step) -> st.Step:
            def loss(prediction: Any, noised: st.Noised, batch: st.Batch) -> st.Losses:
                losses = step.loss(prediction, noised, batch)
                return replace(losses, samples=losses.samples * self.factor)

            return replace(step, loss=loss)

        return wrap

    @st.hookimpl
    def st_step_end(self, stats: st.StepStats) -> None:
        self.factor += self.options.growth

    def state_dict(self) -> dict[str, Any]:
        return {"factor": self.factor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.factor = float(state["factor"])
