"""How training times are drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

from st.diffusion.path import DiscretePath
from st.registrar import StrategyKind

if TYPE_CHECKING:
    from typing import Any

    from torch import Tensor

    from st.diffusion.path import Path
    from st.randomness import Draws


DENSITY: StrategyKind[Callable[[Any], Density]] = StrategyKind("density")
"""``[density] kind``: how training times are drawn."""


class Density(Protocol):
    """Draws the time of each sample: (B,) float32 in [0, 1], row by row, so that no row depends on its batch mates.

    shifted: whether the shift of the run moves the times afterwards.
    """

    shifted: ClassVar[bool]

    def __call__(self, draws: Draws) -> Tensor: ...


@runtime_checkable
class AfterShift(Protocol):
    """A density of times that are shifted already, such as those that a part of a model is asked at."""

    def shifted_by(self, k: float) -> Density:
        """The density for latents whose times are shifted by ``k``."""
        ...


def default_density(path: Path) -> str:
    """The kind to use where the run file names none."""
    return "segmented" if isinstance(path, DiscretePath) else "logit_normal"


def from_quantile(draws: Draws, quantile: Callable[[float], float]) -> Tensor:
    """Times (B,) whose inverse cumulative distribution is ``quantile``, given a number in (0, 1)."""
    return draws.tensor([quantile(number) for number in draws.numbers("time")])
