"""Step: the four functions that a training step is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from st.diffusion.objective import Batch, Losses, Noised
    from st.randomness import Draws
    from st.report.stats import UpdateStats


@dataclass(frozen=True, slots=True)
class Step:
    """One training step. A technique returns a copy with one function replaced (``dataclasses.replace``).

    predict answers in the shape of ``noised.x``, (B, C, ...); loss is given that answer.
    """

    noise: Callable[[Batch, Draws], Noised]
    predict: Callable[[Noised, Batch], Tensor]
    loss: Callable[[Tensor, Noised, Batch], Losses]
    update: Callable[[], UpdateStats]


StepWrapper = Callable[[Step], Step]
"""What ``st_step`` answers: from the step so far to the one that is taken."""
