"""Finite: whether everything that a run would write down is a number."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from st.errors import RunFailed
from st.model.checkpoint.soundness import nonfinite

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from st.train.learning.learners import Updater
    from st.train.ranks.ranks import Ranks


def require_finite(learner: Updater, ranks: Ranks, step: int) -> None:
    """Raises RunFailed, on every rank, where what would be saved on any of them is not finite; every rank calls it."""
    broken = nonfinite(dict(_held(learner, ranks)))
    if not ranks.any(bool(broken)):
        return
    others = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
    raise RunFailed(
        f"{broken[0] if broken else 'a weight of another rank'}{others} is not finite after step {step}",
        why="losses and gradients were finite, so the update itself went out of range; nothing of it is saved",
        fix="lower optimizer.lr, then resume from the checkpoint before it: --resume",
    )


def _held(learner: Updater, ranks: Ranks) -> Iterator[tuple[str, Tensor]]:
    """What learns, its moving average, and what the optimizer remembers of each weight: this rank's parts."""
    for parameter in learner.parameters:
        yield repr(learner.names[parameter]), ranks.part(parameter)
    if learner.average is not None:
        for parameter, shadow in zip(learner.average.parameters, learner.average.shadow, strict=True):
            yield f"the average of {learner.names[parameter]!r}", shadow
    for name, other in learner.others.items():
        for parameter in other.parameters:
            yield f"a weight of learner {name!r}", ranks.part(parameter)
    for number, (parameter, state) in enumerate(learner.optimizer.state.items()):
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                yield f"{name!r} of the optimizer for {learner.names.get(parameter, f'weight {number}')!r}", value
