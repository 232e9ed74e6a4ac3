"""CLASS: a loss term that keeps the mean of each channel where the target has it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import st
from pydantic import Field

if TYPE_CHECKING:
    from torch import Tensor


class CLASS:
    """Add a loss for predictions whose channels drift as a whole, which shows as a colour cast."""

    class Options(st.Options):
        weight: float = Field(0.1, ge=0)
        """How much the term counts beside the loss; 0 leaves training as it is."""

    def __init__(self, options: Options) -> None:
        self.options = options

    @st.hookimpl
    def st_step(self, run: st.Run) -> st.StepWrapper:
        family = run.family

        def wrap(step: st.Step) -> st.Step:
            def loss(prediction: Tensor, noised: st.Noised, batch: st.Batch) -> st.Losses:
                target = family.target(family.path(noised.t)).of(noised.clean, noised.noise)
                drift = (prediction - target).float().flatten(2).mean(2).square().mean()
                return step.loss(prediction, noised, batch).plus("PLUGIN", self.options.weight * drift)

            return replace(step, loss=loss)

        return wrap
