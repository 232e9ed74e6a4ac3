"""Motion: why no gradient reaches what learns."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from st.train.parts.run import Run


def why_still(run: Run, loss: float) -> str:
    """What keeps every gradient of a step at zero, and what to do. loss: the mean of such steps.

    To be called on every rank: weights may lie in parts.
    """
    if loss == 0:
        return "the loss is 0 as well; look at masks, weightings and what techniques make of it"
    dead = [
        name
        for name, weight in run.denoiser.named_parameters()
        if not weight.requires_grad and weight.ndim > 1 and _is_zero(run, weight)
    ]
    if dead:
        rest = f" and {len(dead) - 1} more frozen matrices are" if len(dead) > 1 else ", a frozen matrix, is"
        return (
            f"{dead[-1]!r}{rest} zero throughout, so what is learned beside them changes nothing; "
            "name trained weights (model.checkpoint), or train all of them (adapter.kind = 'full')"
        )
    return "the loss does not depend on what learns; look at adapter.targets and [[optimizer.groups]]"


def _is_zero(run: Run, weight: Tensor) -> bool:
    return weight.is_floating_point() and not run.ranks.any(bool(run.ranks.part(weight).any()))
