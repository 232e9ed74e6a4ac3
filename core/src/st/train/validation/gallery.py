"""Gallery: the pictures of [validation], rendered at most once in a step, for all who look at them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from st.train.parts.run import Run
    from st.train.validation.validation import PromptValidator
    from st.train.validation.validator import Rendered


@dataclass(slots=True)
class Gallery:
    """What was rendered at this step. kept: whether anyone asks for pixels."""

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
        """Everything of this step was measured; clips take much memory."""
        self._rendered = None
