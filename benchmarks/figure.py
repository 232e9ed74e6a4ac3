"""Figure: one measured quantity beside its bar."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bar:
    """The limit that a figure is held to."""

    limit: float
    at_most: bool = True

    def holds(self, value: float) -> bool:
        return value <= self.limit if self.at_most else value >= self.limit


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured quantity.

    group: the benchmark. what: what is measured. value, unit: the number that the bar is about; unit "x" is a ratio of
    ``ours`` to ``floor``; None where it could not be measured, and ``detail`` says why. bar: None where the number is
    for information. detail: what else a reader needs.
    """

    group: str
    what: str
    value: float | None
    unit: str
    bar: Bar | None = None
    floor: str = ""
    ours: str = ""
    detail: str = ""

    @property
    def holds(self) -> bool | None:
        """Whether the bar holds; None where there is none, or no number."""
        return None if self.bar is None or self.value is None else self.bar.holds(self.value)


def median(values: list[float]) -> float:
    """The middle one, or the mean of the two middle ones."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def quartiles(values: list[float]) -> tuple[float, float]:
    """The values below which a quarter and three quarters of the others lie."""
    ordered = sorted(values)
    return ordered[len(ordered) // 4], ordered[(3 * len(ordered)) // 4 - (len(ordered) % 4 == 0)]


def shown(value: float, unit: str) -> str:
    """A number as the table has it."""
    digits = {"x": 3, "s": 2, "%": 1}.get(unit, 0 if value >= 10 else 1)
    return f"{value:,.{digits}f}{'' if unit in ('x', '%') else ' '}{unit}"
