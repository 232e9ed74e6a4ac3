"""Spoiler: gradients or weights that go out of range while losses stay finite, for tests."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import st

if TYPE_CHECKING:
    from torch import Tensor

    from st import Batch, Losses, Noised, Run, Step, StepWrapper, UpdateStats


class Spoiler:
    """Spoils one step of a run."""

    class Options(st.Options):
        """What is spoilt, and when."""

        at: int = 1
        """Steps that are right before it."""
        what: Literal["gradient", "weight"] = "gradient"
        """Whether it reaches the gradients, or only the weights."""

    def __init__(self, options: Options) -> None:
        self.options = options

    @st.hookimpl
    def st_step(self, run: Run) -> StepWrapper:
        def due(what: str) -> bool:
            return self.options.what == what and run.progress.step == self.options.at

        def wrap(step: Step) -> Step:
            def loss(prediction: Tensor, noised: Noised, batch: Batch) -> Losses:
                losses = step.loss(prediction, noised, batch)
                if not due("gradient"):
                    return losses
                # The root of zero is zero, and its slope is infinite.
                return losses.plus("spoilt", (prediction * 0).sum().square().sqrt())

            def update() -> UpdateStats:
                import torch

                stats = step.update()
                if due("weight"):
                    with torch.no_grad():
                        next(p for p in run.denoiser.parameters() if p.requires_grad).view(-1)[0] = float("inf")
                return stats

            return replace(step, loss=loss, update=update)

        return wrap
