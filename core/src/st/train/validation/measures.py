"""Measures: what is measured beside training, and when: pictures, held-out losses, and what plugins bring."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from st.errors import RankLost, StError
from st.report.fanout import attempt

if TYPE_CHECKING:
    from st.data.feed.loader import Loader
    from st.registrar import Registrar
    from st.report.rendering.rendering import Predict
    from st.train.parts.run import Run
    from st.train.validation.validation import PromptValidator
    from st.train.validation.validator import Rendered, Validator

    Averaged = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True, eq=False)
class Measure:
    """One measurement. every: steps between two. at_start: whether also before the first step. call: metrics by name.

    Every rank calls it.
    """

    every: int
    at_start: bool
    call: Callable[[], Mapping[str, float]]


@dataclass(slots=True)
class Measures:
    """All measurements of a run, in the order in which they are taken."""

    each: Sequence[Measure] = ()
    gallery: Gallery | None = None
    _taken: dict[Measure, int] = field(default_factory=dict)
    """At which step each was taken last."""

    def at_start(self) -> list[Measure]:
        """What is measured before the first step."""
        return [one for one in self.each if one.at_start]

    def due(self, step: int) -> list[Measure]:
        """What is measured after this step."""
        return [one for one in self.each if step % one.every == 0]

    def untaken(self, step: int) -> list[Measure]:
        """What was not measured after this step."""
        return [one for one in self.each if self._taken.get(one) != step]

    def take(self, due: Sequence[Measure], step: int) -> list[Mapping[str, float]]:
        """What each of these finds, after this step."""
        found = [one.call() for one in due]
        self._taken |= dict.fromkeys(due, step)
        if self.gallery is not None:
            self.gallery.forget()
        return found

    @property
    def complete(self) -> bool:
        """Whether each has been taken: what is not measured by then never is."""
        return self._taken.keys() == set(self.each)


@dataclass(slots=True)
class Gallery:
    """The pictures of [validation], rendered at most once in a step. kept: whether anyone asks for their pixels."""

    run: Run
    render: PromptValidator
    kept: bool
    _rendered: Sequence[Rendered] | None = None

    def show(self) -> Sequence[Rendered]:
        """Render and show them, if that was not done at this step."""
        if self._rendered is None:
            pictures, self._rendered = self.render(self.run, keep=self.kept)
            self.run.report.pictures(self.run.progress.step, pictures)
        return self._rendered

    def shown(self) -> Sequence[Rendered]:
        """What was rendered at this step so far."""
        return self._rendered or ()

    def forget(self) -> None:
        """The step is over; clips take much memory."""
        self._rendered = None


def measures(run: Run, loader: Loader, registrar: Registrar, predict: Predict, averaged: Averaged) -> Measures:
    """Whatever the run file asks for. predict: how the loop asks the denoiser. averaged: the weights that are saved.

    Raises StError for a validator that scores pictures where none are rendered.
    """
    from st.report.rendering.asked import prompts_to_encode
    from st.train.validation.evaluation import evaluate, evaluation_rows
    from st.train.validation.validation import PromptValidator

    validation, evaluation = run.config.validation, run.config.evaluation
    validators = [(own, choice.build(choice.options)) for own, choice in run.config.validators]
    each, gallery = [], None
    if texts := prompts_to_encode(validation):
        sampler = registrar.lookup("sampler", validation.sampler)
        render = PromptValidator(
            validation,
            loader.encodings(texts),
            sampler.build(sampler.options()),
            predict,
            weights=averaged,
            spread=run.ranks.spreads,
        )
        gallery = shows = Gallery(run, render, bool(validators))

        def validate() -> Mapping[str, float]:
            shows.show()
            return {}

        each.append(Measure(validation.every, validation.at_start, _harmless(run, "[validation]", validate)))
    if evaluation.every:

        def hold_out() -> Mapping[str, float]:
            sets = loader.evaluation(lambda length: evaluation_rows(length, evaluation.samples))
            with averaged():
                return evaluate(run, sets, evaluation, predict)

        each.append(Measure(evaluation.every, True, _harmless(run, "[evaluation]", hold_out)))
    for own, validator in validators:
        if validator.scores_pictures and gallery is None:
            raise StError(
                f"the validator {own.label!r} scores pictures, and none are rendered",
                fix="set validation.every and validation.prompts",
            )
        # Who wants no pictures before the first step gets no scores of them either.
        at_start = validation.at_start or not validator.scores_pictures
        plugin = registrar.lookup("validator", own.kind).owner
        ask = _asking(run, own.label, validator, gallery, averaged)
        each.append(Measure(own.every, at_start, _harmless(run, f"validator {own.label!r} of {plugin}", ask)))
    return Measures(each, gallery)


def _asking(
    run: Run, name: str, validator: Validator, gallery: Gallery | None, averaged: Averaged
) -> Callable[[], Mapping[str, float]]:
    """A plugin's validator, asked with the weights that are saved, its pictures shown."""

    def measure() -> Mapping[str, float]:
        from st.train.validation.untouched import untouched

        rendered: Sequence[Rendered] = ()
        if gallery is not None:
            rendered = gallery.show() if validator.scores_pictures else gallery.shown()
        with averaged(), untouched(run.denoiser, run.device):
            found = validator.validate(run, rendered)
        if found.pictures:
            run.report.pictures(run.progress.step, found.pictures)
        return {f"{name}/{metric}": value for metric, value in found.metrics.items()}

    return measure


def _harmless(run: Run, name: str, measure: Callable[[], Mapping[str, float]]) -> Callable[[], Mapping[str, float]]:
    """The same, with nothing measured and an error in the report where it fails: looking at a run must not end it."""

    def guarded() -> Mapping[str, float]:
        found, error = attempt(measure)
        if isinstance(error, RankLost):
            raise error
        if error is not None:
            text = f"{name} failed at step {run.progress.step}: {type(error).__name__}: {error}"
            run.report.note(text, kind="error")
        return found or {}

    return guarded
