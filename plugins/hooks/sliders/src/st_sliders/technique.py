"""Sliders: an adapter trained at the strength of the data set that a batch comes from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field, field_validator

from st import Options, Problem, hookimpl

if TYPE_CHECKING:
    from st import Batch, Noised, Run, Step, StepWrapper
    from st.settings.config import RunConfig


class SlidersOptions(Options):
    """How strong the adapter is while it learns from each data set."""

    strengths: dict[str, float] = Field(default_factory=dict)
    """How many times the adapter's update counts on batches of a data set, by its `name`: 1.0 for what the slider is to
    show at full strength, -1.0 for the opposite. A data set that is not named is learnt at 1."""

    @field_validator("strengths")
    @classmethod
    def _teach(cls, strengths: dict[str, float]) -> dict[str, float]:
        if nothing := [name for name, strength in strengths.items() if not strength]:
            raise ValueError(f"at strength 0 nothing is learnt from {nothing[0]!r}; leave its [[dataset]] out")
        return strengths


class Sliders:
    """Train an adapter forwards on some data sets and backwards on others, so that its strength becomes a slider.

    On a batch of strength s the denoiser is W + s * update, and the target is the ordinary one. After Gandikota et al.
    2023, "Concept Sliders: LoRA Adaptors for Precise Control in Diffusion Models", arXiv:2311.12092, from pictures.
    """

    Options: ClassVar[type[SlidersOptions]] = SlidersOptions

    def __init__(self, options: SlidersOptions) -> None:
        self.options = options

    @hookimpl
    def st_check(self, config: RunConfig) -> Iterable[Problem]:
        """Names of no data set, nothing to slide between, and adapters that have no strength."""
        from st import Adapter

        names = [dataset.name for dataset in config.datasets if dataset.options.role == "train"]
        for name in self.options.strengths:
            if name not in names:
                what = f"sliders.strengths names {name!r}, which is no data set that this run trains on."
                yield Problem("sliders.strengths", what, fix=f"They are: {', '.join(names)}.")
        if all(self._strength(name) == 1 for name in names):
            what = "sliders has no effect: every data set is learnt at strength 1."
            yield Problem("sliders.strengths", what, fix="Write [sliders.strengths], and NAME = -1.0 below it, or so.")
        adapter = config.adapter.build(config.adapter.options)
        if type(adapter).scaled is Adapter.scaled:
            what = (
                f"sliders trains an adapter at several strengths, and adapter.kind = {config.adapter.kind!r} has none."
            )
            yield Problem("adapter.kind", what, fix='Set adapter.kind to "lora", or leave sliders out.')

    @hookimpl
    def st_step(self, run: Run) -> StepWrapper:
        """The strength stays until gradients are there: what is computed again in backward needs it too."""
        # Said before the first step where this adapter, as it was set up, has no strength.
        with run.adapter.scaled(run.denoiser, 1.0):
            self._describe(run)

        def wrap(step: Step) -> Step:
            @contextmanager
            def scope(noised: Noised, batch: Batch) -> Iterator[None]:
                strength = self._strength(batch.dataset)
                with step.scope(noised, batch), run.adapter.scaled(run.denoiser, strength):
                    yield

            return replace(step, scope=scope)

        return wrap

    def _strength(self, dataset: str) -> float:
        return self.options.strengths.get(dataset, 1.0)

    def _describe(self, run: Run) -> None:
        named = self.options.strengths
        told = [f"{name!r} {strength:+g}" for name, strength in named.items()]
        rest = [one.name for one in run.config.datasets if one.name not in named and one.options.role == "train"]
        told += [f"{name!r} +1, which no strength is set for" for name in rest]
        run.report.note(f"strength of the adapter by data set: {'; '.join(told)}", kind="sliders")
        strengths = [self._strength(one.name) for one in run.config.datasets if one.options.role == "train"]
        if min(strengths) > 0 or max(strengths) < 0:
            run.report.note("all strengths have one sign: the slider has no opposite to learn from", kind="warning")
