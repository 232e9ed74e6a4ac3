"""Step: the functions that a training step is made of."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from st.diffusion.objective import Batch, Losses, Noised
    from st.randomness import Draws
    from st.report.stats import UpdateStats


def _nothing(noised: Noised, batch: Batch) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True, slots=True)
class Step:
    """One training step. A technique returns a copy with one function replaced (``dataclasses.replace``).

    predict answers in the shape of ``noised.x``, (B, C, ...); loss is given that answer.
    scope: entered around ``predict``, ``loss`` and ``backward``, which may compute blocks again: a state of the
    denoiser that a prediction was made in belongs here. backward: gradients of the losses of one of so many
    microbatches.
    """

    noise: Callable[[Batch, Draws], Noised]
    predict: Callable[[Noised, Batch], Tensor]
    loss: Callable[[Tensor, Noised, Batch], Losses]
    update: Callable[[], UpdateStats]
    backward: Callable[[Losses, int], None]
    scope: Callable[[Noised, Batch], AbstractContextManager[None]] = _nothing


StepWrapper = Callable[[Step], Step]
"""What ``st_step`` answers: from the step so far to the one that is taken."""
