"""Brightness: a validator that a plugin brings, for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

import st

if TYPE_CHECKING:
    from st.train.validation.validation import ValidationReport


class Brightness:
    """Measures the mean of the trained weights, times a factor."""

    class Options(st.Options):
        """None."""

    class Measure(st.Options):
        """What is measured."""

        factor: float = Field(default=1.0)
        """Multiplies the measurement."""

    def __init__(self, options: Options) -> None:
        self.options = options

    @st.hookimpl
    def st_register(self, register: st.Registrar) -> None:
        register.add(st.VALIDATOR, "brightness", build, self.Measure)


def build(options: Brightness.Measure):
    """A validator of these options."""

    def validate(run: st.Run) -> ValidationReport:
        from st.train.validation.validation import ValidationReport

        return ValidationReport(metrics={"brightness": options.factor * run.progress.step})

    return validate
