"""Recorder: a technique that changes nothing and writes down what each step saw, for tests that compare runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import st

if TYPE_CHECKING:
    from torch import Tensor

    from st.diffusion.objective import Batch, Noised
    from st.randomness import Draws


class Recorder:
    """Writes samples, times, noise and step 1's gradients of this rank to ``<output>/seen-<rank>.pt``."""

    class Options(st.Options):
        """None."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.seen: list[dict[str, Any]] = []
        self.gradients: list[Tensor] = []

    @st.hookimpl
    def st_step(self, run: st.Run) -> st.StepWrapper:
        def wrap(step: st.Step) -> st.Step:
            def noise(batch: Batch, draws: Draws) -> Noised:
                noised = step.noise(batch, draws)
                self.seen.append({"keys": batch.keys, "indices": batch.indices, "t": noised.t, "noise": noised.noise})
                return noised

            def update() -> st.UpdateStats:
                if not self.gradients:
                    trained = [p for p in run.denoiser.parameters() if p.requires_grad]
                    run.ranks.synchronise(trained)
                    self.gradients = [p.grad.clone() for p in trained if p.grad is not None]
                return step.update()

            return replace(step, noise=noise, update=update)

        return wrap

    @st.hookimpl
    def st_run_end(self, run: st.Run) -> None:
        import torch

        file = Path(run.directory) / f"seen-{run.ranks.rank}.pt"
        torch.save({"seen": self.seen, "gradients": self.gradients}, file)
