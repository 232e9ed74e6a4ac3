"""Which bars each benchmark measures itself against."""

from __future__ import annotations

from collections.abc import Sequence

from figure import Figure

BARS: dict[str, list[tuple[str, float]]] = {
    "loop": [("x", 1.02)],
    "launch": [("s", 0.25), ("x", 1.3)],
    "scan": [("x", 2.0), ("x", 2.0)],
    "media": [("x", 1.1), ("x", 1.1)],
    "rows": [("MB", 400.0), ("MB", 400.0), ("s", 3.0), ("s", 3.0)],
    "encoding": [("x", 1.2), ("x", 1.2)],
    "feeding": [("%", 95.0)],
    "saving": [("%", 5.0)],
    "draws": [("%", 1.0)],
    "middleware": [("us", 1.0), ("us", 3.0)],
    "telling": [("x", 1.0)] * 3,
    "families": [("%", 20.0), *[("x", 1.0)] * 5, ("x", 1.02), ("x", 1.2), ("x", 1.2)],
}
"""By benchmark, units and limits in order."""


def missing(figures: Sequence[Figure], groups: Sequence[str]) -> list[str]:
    """Benchmarks of these that measured less, or more, than they should have."""
    found = {
        group: sorted((one.unit, one.bar.limit) for one in figures if one.group == group and one.bar)
        for group in groups
    }
    return [group for group in groups if found[group] != BARS.get(group, [])]
