"""Columns: numbers by name over a run's steps, eight bytes each, as long as the run."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

_NONE = float("nan")


class Columns:
    """Rows of numbers, each at a step; steps never fall. A number that is not known is NaN."""

    def __init__(self) -> None:
        self._steps = array("q")
        # A column may be shorter than the steps: what is missing at its end is not known.
        self._columns: dict[str, array[float]] = {}

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def last_step(self) -> int:
        """Of the last row; 0 where there is none."""
        return self._steps[-1] if self._steps else 0

    def add(self, step: int, values: Mapping[str, float | None]) -> None:
        """One more row."""
        rows = len(self._steps)
        for name, value in values.items():
            column = self._columns.get(name)
            if column is None:
                column = self._columns[name] = array("d")
            if len(column) < rows:
                column.extend([_NONE] * (rows - len(column)))
            column.append(_NONE if value is None else value)
        self._steps.append(step)

    def cut(self, step: int) -> None:
        """Forget the rows behind a step."""
        rows = bisect_right(self._steps, step)
        del self._steps[rows:]
        for column in self._columns.values():
            del column[rows:]

    def names(self, prefix: str = "") -> list[str]:
        """Of the columns that have a number, in the order in which they came up."""
        known = [name for name in self._columns if name.startswith(prefix)]
        return [name for name in known if np.isfinite(self.column(name)).any()]

    def column(self, name: str) -> Numbers:
        """One number for each row, (N,)."""
        found = np.full(len(self._steps), _NONE)
        column = self._columns.get(name)
        if column is not None:
            found[: len(column)] = column
        return found

    def curve(self, name: str) -> Numbers:
        """Steps and numbers where those are finite, (N, 2)."""
        values = self.column(name)
        there = np.isfinite(values)
        return np.stack([np.asarray(self._steps, np.float64)[there], values[there]], axis=1)

    def last(self, name: str) -> float | None:
        """The number in the last row, where it is known."""
        column = self._columns.get(name)
        if not column or len(column) < len(self._steps) or column[-1] != column[-1]:
            return None
        return column[-1]
