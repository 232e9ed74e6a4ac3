"""Shot: what a family is asked to render."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from st.data.geometry import Geometry

    OnStep = Callable[[int], None]


def unwatched(done: int) -> None:
    """An ``on_step`` that does nothing."""


@dataclass(frozen=True, slots=True)
class Shot:
    """One render request: a picture, clip or sound of one text.

    conditions: of the text, collated, so (1, ...) each. negative: likewise, of what to keep away from; None where
    guidance is off. The two may differ in length. geometry: of the result, in pixels, frames and seconds.
    """

    conditions: Mapping[str, Tensor]
    negative: Mapping[str, Tensor] | None
    geometry: Geometry
    seed: int
    """Of the noise that it begins from: the same seed gives the same noise on any device."""
    steps: int
    """Sampling steps."""
    guidance: float
    """Strength of guidance; 1 is none."""
    on_step: OnStep = unwatched
    """Told after each sampling step how many are done."""


@runtime_checkable
class Guides(Protocol):
    """A family whose pipeline guides otherwise than by ``against + strength * (wanted - against)``."""

    def guide(self, wanted: Tensor, against: Tensor, strength: float) -> Tensor:
        """Two predictions (B, ...) as the one that the pipeline steps with at this strength of guidance."""
        ...
