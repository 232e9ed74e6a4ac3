"""What a run measures between steps, and when: prompts, held-out losses, and what plugins judge by."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from st.errors import RankLost, StError
from st.report.fanout import attempt
from st.train.parts.networks import computing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from st.diffusion.objective import Batch, Noised
    from st.train.parts.run import Run
    from st.train.session import Session
    from st.train.validation.validator import Rendered, Validator

    Measure = Callable[[], Mapping[str, float]]
    Attempt = Callable[[], Mapping[str, float] | None]
    Predict = Callable[[Noised, Batch], Tensor]


@dataclass(slots=True)
class Due:
    """Something that is measured every so many steps. at_start: also before the first one.

    measure: what it gives, or None where it failed. measured_at: the step at which it was asked last. metrics: names of
    what it gave so far. failed: whether it failed when it was asked last.
    """

    every: int
    at_start: bool
    measure: Attempt
    measured_at: int | None = None
    metrics: dict[str, None] = field(default_factory=dict)
    failed: bool = False

    def ask(self, step: int) -> Mapping[str, float]:
        """What it measures at a step; nothing where it fails."""
        found = self.measure()
        self.measured_at, self.failed = step, found is None
        self.metrics |= dict.fromkeys(found or ())
        return found or {}

    def may_give(self, metric: str) -> bool:
        """Whether it gives this metric, as far as can be known of something that was not asked yet, or failed."""
        return metric in self.metrics or self.measured_at is None or (self.failed and not self.metrics)


def measures(session: Session, predict: Predict) -> Iterator[Due]:
    """Validation pictures, held-out losses and what plugins judge by, as the run file asks for them.

    Raises StError for a validator that scores pictures where none are rendered.
    """
    from st.report.rendering.asked import prompts_to_encode
    from st.train.validation.evaluation import evaluate, evaluation_rows
    from st.train.validation.gallery import Gallery
    from st.train.validation.validation import PromptValidator

    run = session.run
    validation, evaluation = run.config.validation, run.config.evaluation
    validators = [(own, choice.build(choice.options)) for own, choice in run.config.validators]
    if texts := prompts_to_encode(validation):
        sampler = session.plugins.registrar.lookup("sampler", validation.sampler)
        render = PromptValidator(
            validation,
            session.loader.encodings(texts),
            sampler.build(sampler.options()),
            predict,
            weights=session.averaged,
            within=partial(computing, run),
            redaction=run.config.redaction,
            spread=run.ranks.spreads,
        )

        session.gallery = shows = Gallery(run, render, kept=bool(validators))

        def validate() -> Mapping[str, float]:
            shows.show()
            return {}

        yield Due(validation.every, validation.at_start, _harmless(run, "[validation]", validate))
    if evaluation.every:

        def hold_out() -> Mapping[str, float]:
            sets = session.loader.evaluation(lambda length: evaluation_rows(length, evaluation.samples))
            with session.averaged():
                return evaluate(run, sets, evaluation, predict)

        yield Due(evaluation.every, True, _harmless(run, "[evaluation]", hold_out))

    for own, validator in validators:
        if validator.scores_pictures and session.gallery is None:
            raise StError(
                f"the validator {own.label!r} scores pictures, and none are rendered",
                fix="set validation.every and validation.prompts",
            )
        plugin = session.plugins.registrar.lookup("validator", own.kind).owner
        measure = _harmless(run, f"validator {own.label!r} of {plugin}", _measure_of(session, own.label, validator))
        # Who wants no pictures before the first step gets no scores of them either.
        yield Due(own.every, validation.at_start or not validator.scores_pictures, measure)


def _harmless(run: Run, name: str, measure: Measure) -> Attempt:
    """The same, with nothing measured and an error in the report where it fails: looking at a run must not end it."""

    def guarded() -> Mapping[str, float] | None:
        found, error = attempt(measure)
        if isinstance(error, RankLost):
            raise error
        if error is not None:
            text = f"{name} failed at step {run.progress.step}: {type(error).__name__}: {error}"
            run.report.note(text, kind="error")
        return found

    return guarded


def _measure_of(session: Session, name: str, validator: Validator) -> Measure:
    """A plugin's validator, asked with the weights that are saved, its pictures shown."""

    def measure() -> Mapping[str, float]:
        from st.train.validation.untouched import untouched

        run, gallery = session.run, session.gallery
        rendered: Sequence[Rendered] = ()
        if gallery is not None:
            rendered = gallery.show() if validator.scores_pictures else gallery.shown()
        with session.averaged(), untouched(run.denoiser, run.device):
            found = validator.validate(run, rendered)
        if found.pictures:
            run.report.pictures(run.progress.step, found.pictures)
        return {f"{name}/{metric}": float(value) for metric, value in found.metrics.items()}

    return measure
