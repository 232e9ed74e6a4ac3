"""Prodigy, which says what step size it found."""

from __future__ import annotations

from prodigyopt import Prodigy  # type: ignore[import-untyped]


class ReportingProdigy(Prodigy):  # type: ignore[misc]
    """prodigyopt's Prodigy with its step size as a metric, ``optimizer/d``."""

    def metrics(self) -> dict[str, float]:
        """The step size, which lr multiplies."""
        return {"d": float(self.param_groups[0]["d"])}
