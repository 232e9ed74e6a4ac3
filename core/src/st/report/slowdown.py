"""SlowDown: notices when steps take much longer than they did, and which part of them grew."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from statistics import median

from st.report.log.duration import duration

WARM_UP, BASELINE, RECENT = 1, 20, 10
"""Readings that are passed over at first (compilation, cold caches), that say what is usual, and that are compared."""
FACTOR = 2.0
CAUSES = {
    "data": "waiting for data: the disk, the cache's store, or too few [loader] workers",
    "compute": "forward and backward: the device is throttled, shared, or out of memory and swapping",
    "update": "the optimizer: its state may no longer fit the device's memory",
    "rest": "time between stages: another program is using the device or the processor",
}
Parts = Mapping[str, float]


class SlowDown:
    """Compares medians of readings, so that neither one slow step nor a mixture of sizes is taken for a slow-down."""

    def __init__(self) -> None:
        self._passed = 0
        self._usual: list[Parts] = []
        self._recent: deque[Parts] = deque(maxlen=RECENT)
        self._slow = False

    def see(self, metrics: Mapping[str, float]) -> str | None:
        """A sentence when steps have become slow, once until they are fast again. metrics: of a reading."""
        self._passed += 1
        if self._passed <= WARM_UP:
            return None
        parts = _parts(metrics)
        if len(self._usual) < BASELINE:
            self._usual.append(parts)
            return None
        self._recent.append(parts)
        if len(self._recent) < RECENT:
            return None
        usual, now = _median(self._usual), _median(self._recent)
        was_slow, self._slow = self._slow, sum(now.values()) > FACTOR * sum(usual.values())
        if was_slow or not self._slow:
            return None
        part = max(now, key=lambda name: now[name] - usual.get(name, 0.0))
        return (
            f"steps take {duration(sum(now.values()))}, where they took {duration(sum(usual.values()))}; most of it is "
            f"{CAUSES.get(part, part)} ({duration(usual.get(part, 0.0))} became {duration(now[part])})"
        )


def _parts(metrics: Mapping[str, float]) -> dict[str, float]:
    """Seconds per step by stage, with what no stage claims as ``rest``."""
    parts = {
        name.removeprefix("seconds/"): seconds
        for name, seconds in metrics.items()
        if name.startswith("seconds/") and name != "seconds/step"
    }
    return parts | {"rest": max(0.0, metrics.get("seconds/step", 0.0) - sum(parts.values()))}


def _median(readings: Iterable[Parts]) -> dict[str, float]:
    """The median of each stage."""
    gathered: dict[str, list[float]] = {}
    for parts in readings:
        for name, seconds in parts.items():
            gathered.setdefault(name, []).append(seconds)
    return {name: median(values) for name, values in gathered.items()}
