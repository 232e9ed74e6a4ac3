"""Prior: the base model's own prediction as the target of some data sets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from st import Losses, Options, Problem, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from st import Batch, Mix, Noised, Run, Step, StepWrapper
    from st.randomness import Draws
    from st.settings.config import RunConfig


class PriorOptions(Options):
    """Which data sets keep the adapter close to the base model."""

    datasets: tuple[str, ...] = ()
    """Data sets whose target is the base model's prediction, by their `name` (the last part of the url). Empty for all.
    """
    weight: float = Field(1.0, ge=0)
    """How much their loss counts."""


class Prior:
    """Teach an adapter on some data sets what the base model, asked without the adapter, says of the same noisy input.

    So it keeps what it knew of people, say, while it learns one person, without pictures that the base model drew.
    """

    Options: ClassVar[type[PriorOptions]] = PriorOptions

    def __init__(self, options: PriorOptions) -> None:
        self.options = options

    @hookimpl
    def st_check(self, config: RunConfig) -> Iterable[Problem]:
        """Names of no data set, and adapters that leave no base model to ask."""
        from st import Adapter

        names = [dataset.name for dataset in config.datasets]
        for name in self.options.datasets:
            if name not in names:
                what = f"prior.datasets names {name!r}, which is no data set of this run."
                yield Problem("prior.datasets", what, fix=f"They are: {', '.join(names)}.")
        adapter = config.adapter.build(config.adapter.options)
        if type(adapter).disabled is Adapter.disabled:
            what = f"prior asks the base model, and adapter.kind = {config.adapter.kind!r} changes its weights."
            yield Problem("adapter.kind", what, fix='Set adapter.kind to "lora", or leave prior out.')

    @hookimpl
    def st_step(self, run: Run) -> StepWrapper:
        """In ``noise``, not in ``loss``: a base model that is put back for a moment may not be between forward and
        backward.
        """

        def wrap(step: Step) -> Step:
            def noise(batch: Batch, draws: Draws) -> Noised:
                noised = step.noise(batch, draws)
                return self._taught_by_base(run, step, noised, batch) if self._keeps(batch) else noised

            def loss(prediction: Tensor, noised: Noised, batch: Batch) -> Losses:
                losses = step.loss(prediction, noised, batch)
                if not self._keeps(batch):
                    return losses
                term = self.options.weight * losses.samples.mean()
                return Losses(losses.samples.detach() * 0, losses.terms).plus("prior", term)

            return replace(step, noise=noise, loss=loss)

        return wrap

    def _keeps(self, batch: Batch) -> bool:
        return not self.options.datasets or batch.dataset in self.options.datasets

    def _taught_by_base(self, run: Run, step: Step, noised: Noised, batch: Batch) -> Noised:
        import torch

        with torch.no_grad(), run.adapter.disabled(run.denoiser):
            answer = step.predict(noised, batch).float()
        clean, noise = parts_of(answer, run.family.target(run.family.path(noised.t)))
        return replace(noised, clean=clean, noise=noise)


def parts_of(answer: Tensor, output: Mix) -> tuple[Tensor, Tensor]:
    """The smallest (clean, noise), each like ``answer``, of which ``output`` makes ``answer``.

    Solving for those of the noisy input as well would divide by zero where a prediction says nothing of one of them.
    """
    from st import Mix

    square = output.clean * output.clean + output.noise * output.noise
    return Mix(output.clean / square, 0.0).of(answer, answer), Mix(output.noise / square, 0.0).of(answer, answer)
