"""Effects: settings that can each be used, and together do nothing or only harm. Needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from st.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from st.options import Options
    from st.settings.config import RunConfig

LARGEST_RATE = 100.0
"""No optimizer is used above 1, but plain gradient descent, whose rates go with the size of its gradients."""


def problems(config: RunConfig) -> Iterator[Problem]:
    """What a run with these settings would do in vain, each with what to write instead."""
    yield from _validation(config)
    yield from _rates(config)


def _validation(config: RunConfig) -> Iterator[Problem]:
    options = config.validation
    asked = bool(options.prompts or options.library)
    if options.every and not asked:
        yield Problem(
            "validation.every",
            f"{_place(config, ('validation', 'every'))}validation.every = {options.every} renders nothing: "
            "there are no prompts.",
            fix='Write prompts = ["a photo of a cat"], or so, below [validation], or take every out.',
        )
    # Written, a 0 is what was meant.
    if asked and config.origin(("validation", "every")) == "default":
        key = "prompts" if options.prompts else "library"
        yield Problem(
            f"validation.{key}",
            f"{_place(config, ('validation', key))}validation.{key} would never be rendered: validation.every is not "
            "set.",
            fix="Write every = 500, or so, below [validation]: steps between two validations.",
        )


def _rates(config: RunConfig) -> Iterator[Problem]:
    found: list[tuple[tuple[str | int, ...], Options]] = [(("optimizer", "lr"), config.optimizer.options)]
    found += [(("optimizer", "groups", number, "lr"), group) for number, group in enumerate(config.groups)]
    for location, options in found:
        rate = options.model_dump().get("lr")
        if rate is not None and rate > LARGEST_RATE:
            name = ".".join(map(str, location))
            yield Problem(
                name,
                f"{_place(config, location)}{name} = {rate:g} would destroy the weights in one step.",
                fix="Usual rates lie between 1e-6 and 1e-2.",
            )


def _place(config: RunConfig, location: tuple[str | int, ...]) -> str:
    origin = config.origin(location)
    return "" if origin == "default" else f"{origin}: "
