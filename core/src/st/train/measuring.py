"""What a run measures between steps, and when: prompts, held-out losses, and what plugins judge by."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from st.errors import RankLost
from st.report.fanout import attempt
from st.train.assembly import computing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor

    from st.diffusion.objective import Batch, Noised
    from st.train.parts.run import Run
    from st.train.session import Session
    from st.train.validation.validation import Validator

    Measure = Callable[[], Mapping[str, float]]
    Predict = Callable[[Noised, Batch], Tensor]


@dataclass(slots=True)
class Due:
    """Something that is measured every so many steps. at_start: also before the first one.

    measured_at: the step at which it was asked last. metrics: names of what it gave so far.
    """

    every: int
    at_start: bool
    measure: Measure
    measured_at: int | None = None
    metrics: dict[str, None] = field(default_factory=dict)


def measures(session: Session, predict: Predict) -> Iterator[Due]:
    """Validation pictures and held-out losses, as the run file asks for them."""
    from st.report.rendering.asked import prompts_to_encode
    from st.train.validation.evaluation import evaluate, evaluation_rows
    from st.train.validation.validation import PromptValidator

    run = session.run
    validation, evaluation = run.config.validation, run.config.evaluation
    if texts := prompts_to_encode(validation):
        sampler = session.plugins.registrar.lookup("sampler", validation.sampler)
        validator = PromptValidator(
            validation,
            session.loader.encodings(texts),
            sampler.build(sampler.options()),
            predict,
            weights=session.averaged,
            within=partial(computing, run),
            redaction=run.config.redaction,
            spread=run.ranks.spreads,
        )

        def validate() -> Mapping[str, float]:
            found = validator(run)
            run.report.pictures(run.progress.step, found.pictures)
            return found.metrics

        yield Due(validation.every, validation.at_start, _harmless(run, "[validation]", validate))
    if evaluation.every:

        def hold_out() -> Mapping[str, float]:
            sets = session.loader.evaluation(lambda length: evaluation_rows(length, evaluation.samples))
            with session.averaged():
                return evaluate(run, sets, evaluation, predict)

        yield Due(evaluation.every, True, _harmless(run, "[evaluation]", hold_out))

    for every, choice in run.config.validators:
        plugin = session.plugins.registrar.lookup("validator", choice.kind).owner
        measure = _measure_of(session, choice.build(choice.options))
        yield Due(every, False, _harmless(run, f"validator {choice.kind!r} of {plugin}", measure))


def _harmless(run: Run, name: str, measure: Measure) -> Measure:
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


def _measure_of(session: Session, validator: Validator) -> Measure:
    """A plugin's validator, asked with the weights that are saved, its pictures shown."""

    def measure() -> Mapping[str, float]:
        run = session.run
        with session.averaged():
            found = validator(run)
        if found.pictures:
            run.report.pictures(run.progress.step, found.pictures)
        return found.metrics

    return measure
