"""Brightness: a validator that a plugin brings, for tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

import st

if TYPE_CHECKING:
    from collections.abc import Sequence


class Measure(st.Validator):
    """Measures the number of the step, times a factor."""

    class Options(st.Options):
        """What is measured."""

        factor: float = Field(default=1.0)
        """Multiplies the measurement."""

    def validate(self, run: st.Run, rendered: Sequence[st.Rendered]) -> st.ValidationReport:
        return st.ValidationReport({"step": self.options.factor * run.progress.step, "pictures": len(rendered)})


class Seen(st.Validator):
    """Measures the mean of all pixels that were rendered."""

    scores_pictures = True

    def validate(self, run: st.Run, rendered: Sequence[st.Rendered]) -> st.ValidationReport:
        values = [float(one.pixels.mean()) for one in rendered]
        return st.ValidationReport({"mean": sum(values) / len(values), "pictures": len(values)})


class Failing(st.Validator):
    """Measures the number of the step from the third on, and fails before."""

    def validate(self, run: st.Run, rendered: Sequence[st.Rendered]) -> st.ValidationReport:
        if run.progress.step < 3:
            raise ValueError("too early to say")
        return st.ValidationReport({"step": run.progress.step})


class Restless(st.Validator):
    """Draws random numbers, and leaves modules as it likes."""

    def validate(self, run: st.Run, rendered: Sequence[st.Rendered]) -> st.ValidationReport:
        import torch

        assert not torch.is_grad_enabled() and not run.denoiser.training
        torch.rand(7)
        run.denoiser.train()
        return st.ValidationReport()


class Brightness:
    """Brings them all."""

    class Options(st.Options):
        """None."""

    def __init__(self, options: Options) -> None:
        self.options = options

    @st.hookimpl
    def st_register(self, register: st.Registrar) -> None:
        register.add(st.VALIDATOR, "brightness", Measure, Measure.Options)
        register.add(st.VALIDATOR, "failing", Failing, Failing.Options)
        register.add(st.VALIDATOR, "restless", Restless, Restless.Options)
        register.add(st.VALIDATOR, "seen", Seen, Seen.Options)
