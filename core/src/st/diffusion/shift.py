"""How training and sampling times are moved towards noise where there are many tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, Self, TypeVar

from pydantic import Field, model_validator

from st.options import Options

if TYPE_CHECKING:
    from torch import Tensor

Time = TypeVar("Time", float, "Tensor")


class ShiftOptions(Options):
    """Moves times towards noise: k t / (1 + (k - 1) t)."""

    kind: Literal["none", "static", "family"] = "family"
    """Whether times stay, move by value, or move as the model's authors moved them."""
    value: float | None = Field(default=None, gt=0)
    """k of a static shift. 3 moves t = 0.5 to 0.75."""

    @model_validator(mode="after")
    def _value_belongs_to_static(self) -> Self:
        if self.kind == "static" and self.value is None:
            raise ValueError("a static shift needs a value")
        if self.kind != "static" and self.value is not None:
            raise ValueError(f"value = {self.value} has no effect while kind is {self.kind!r}")
        return self


def shift(t: Time, k: float) -> Time:
    """k t / (1 + (k - 1) t): 0 and 1 stay, k = 1 changes nothing. Esser et al. 2024, arXiv:2403.03206, eq. 23."""
    return k * t / (1 + (k - 1) * t)


def exponential_shift(
    tokens: int, low: tuple[int, float] = (256, 0.5), high: tuple[int, float] = (4096, 1.15)
) -> float:
    """k = exp(mu), where mu lies on the line through two points (tokens, mu); families state their own points."""
    slope = (high[1] - low[1]) / (high[0] - low[0])
    return math.exp(low[1] + slope * (tokens - low[0]))


def shift_rule(
    options: ShiftOptions, tokens: Callable[[Tensor], int], time_shift: Callable[[int], float]
) -> Callable[[Tensor], float]:
    """From latents (B, ...) to k. tokens, time_shift: the family's, asked only where options leave it to the family."""
    if options.kind == "family":
        return lambda latents: time_shift(tokens(latents))
    k = 1.0 if options.value is None else options.value
    return lambda latents: k


def unshifted(latents: Tensor) -> float:
    """k of no shift."""
    return 1.0
