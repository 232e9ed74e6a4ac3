"""How much each time counts.

The loss is taken in the space of the target. A weighting can move it to another space: an error of a predicted picture
that is ``d`` is an error ``d / t`` of the velocity on a straight path, so a family that predicts clean latents there
is trained on velocities by ``inverse_square``. Min-SNR, which is stated for clean latents, is brought to every target
in the same way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from st.registrar import StrategyKind

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from torch import Tensor

    from st.diffusion.path import Mix


WEIGHTING: StrategyKind[Callable[[Any], Weighting]] = StrategyKind("weighting")
"""``[weighting] kind``: how much each time counts."""


class Weighting(Protocol):
    """The factor of each time's loss, like t, float32.

    input: the mix that the denoiser sees. output: the mix that it predicts. t: after any shift, (B,) or of positions.
    """

    def __call__(self, input: Mix, output: Mix, t: Tensor) -> Tensor: ...
