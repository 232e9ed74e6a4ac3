"""Judge: a plugin with a validator that scores what was rendered, small enough for any test."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

import st

if TYPE_CHECKING:
    from collections.abc import Sequence


class Brightness(st.Validator):
    """How far the mean of what is rendered for each prompt is from a wanted one."""

    class Options(st.Options):
        """What is wanted."""

        wanted: float = Field(default=0.5, ge=0, le=1)
        """Mean that pictures should have."""

    options: Options
    scores_pictures = True

    def validate(self, run: st.Run, rendered: Sequence[st.Rendered]) -> st.ValidationReport:
        away = {one.prompt.name: abs(float(one.pixels.mean()) - self.options.wanted) for one in rendered}
        return st.ValidationReport({"pictures": len(away), **away} if away else {})


class Judge:
    """Brings the validator "judge"."""

    class Options(st.Options):
        """None."""

    def __init__(self, options: Options) -> None:
        self.options = options

    @st.hookimpl
    def st_register(self, register: st.Registrar) -> None:
        """Add it."""
        register.add(st.VALIDATOR, "judge", Brightness, Brightness.Options)
