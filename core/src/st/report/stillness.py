"""Stillness: notices when no gradient reaches a weight, so that a run of days does not end with what it began with."""

from __future__ import annotations

from collections.abc import Callable

from st.report.readings import Reading

FIRST_STEPS = 10
"""Steps after which the device is read for the first time, however seldom it is read later."""

Reason = Callable[[float], str]


class Stillness:
    """Watches gradient norms as they are read. reason: says why, given the mean loss of such steps."""

    def __init__(self, reason: Reason) -> None:
        self._reason = reason
        self._why = ""
        self._moved = False

    def see(self, reading: Reading) -> str | None:
        """A sentence for the first reading whose gradients were all exactly zero."""
        norm = reading.metrics.get("grad_norm")
        if norm != 0.0:
            self._moved = self._moved or norm is not None
            return None
        if self._why:
            return None
        self._why = self._reason(reading.metrics["loss"])
        return f"every gradient of steps {reading.first} to {reading.step} is zero, so nothing is learned: {self._why}"

    def end(self) -> str | None:
        """A sentence for a run in which no step changed a weight."""
        return f"no step of this run had a gradient, so nothing was learned: {self._why}" if self._still else None

    @property
    def _still(self) -> bool:
        return bool(self._why) and not self._moved
