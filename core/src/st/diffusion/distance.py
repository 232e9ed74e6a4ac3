"""How far a prediction is from what was wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from st.registrar import StrategyKind

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from torch import Tensor

    from st.diffusion.path import Path


DISTANCE: StrategyKind[Callable[[Any], Distance]] = StrategyKind("distance")
"""``[distance] kind``: how far a prediction is from its target."""


class Distance(Protocol):
    """The error of every element, like prediction, float32 and not negative; 0 where both agree.

    prediction, wanted: (B, ...) float32. t: after any shift, (B,) or of positions as ``layout.broadcast`` reads them.
    """

    def __call__(self, prediction: Tensor, wanted: Tensor, t: Tensor, path: Path) -> Tensor: ...
