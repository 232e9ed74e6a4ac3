"""Learner: something that learns beside the denoiser's adapter, with an optimizer of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from st.model.inside.stream import BlockGroup
    from st.train.ranks.gradients import ClipOptions


@dataclass(frozen=True, slots=True)
class Learner:
    """Something that learns in a run besides the denoiser's adapter: a discriminator, a score of generated pictures.

    name: that of its loss in ``Losses.learners``. module: its parameters that require gradients learn from that loss
    alone, and from no other; the same on every rank to begin with. optimizer, schedule: as sections of a run file,
    ``{"kind": "adamw", "lr": 1e-5}``; empty for the run's own. clip: the run's where None. every: it steps at every
    so many steps of the run; its losses of the others are not used. blocks: what an engine that splits weights takes
    one by one.
    """

    name: str
    module: nn.Module
    optimizer: Mapping[str, object] = field(default_factory=dict)
    schedule: Mapping[str, object] = field(default_factory=dict)
    clip: ClipOptions | None = None
    every: int = 1
    blocks: Sequence[BlockGroup] = ()

    def due(self, step: int) -> bool:
        """Whether it steps with the next optimizer step, after ``step`` of them (``run.progress.step``)."""
        return (step + 1) % self.every == 0
