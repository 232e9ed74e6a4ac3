"""What one optimizer step did, as the report and plugins are told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from st.diffusion.objective import Batch, Losses


@dataclass(frozen=True, slots=True)
class UpdateStats:
    """What the optimizer step saw: the gradient norm before clipping, a scalar tensor, and learning rates by group.

    metrics: further numbers of the optimizer, asked for when the report reads. broken: names of the weights whose
    gradients were not finite, asked only where the norm is not. scaled: the loss was scaled for fp16, so a step whose
    norm is not finite was left out and lowered the scale. others: of further learners
    that stepped too, by name.
    """

    grad_norm: Tensor | None
    learning_rates: tuple[float, ...]
    metrics: Callable[[], Mapping[str, float]] | None = None
    broken: Callable[[], Sequence[str]] | None = None
    scaled: bool = False
    others: Mapping[str, UpdateStats] = field(default_factory=dict)


@dataclass(slots=True)
class StepStats:
    """What one optimizer step did.

    Tensors are scalars, () each, one for each microbatch. They stay on the device: reading one is a synchronisation, so
    nobody does in the loop.
    """

    losses: list[Tensor] = field(default_factory=list)
    terms: dict[str, list[Tensor]] = field(default_factory=dict)
    """Losses of streams and further terms, by name."""
    learners: dict[str, list[Tensor]] = field(default_factory=dict)
    """Losses of further learners, by name."""
    datasets: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    samples: int = 0
    update: UpdateStats | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    """Where the step's time went, by stage: data, compute, update."""

    def add(self, losses: Losses, batch: Batch) -> None:
        """Count one microbatch."""
        self.losses.append(losses.total.detach())
        for name, term in {**losses.streams, **losses.terms}.items():
            self.terms.setdefault(name, []).append(term.detach())
        for name, loss in losses.learners.items():
            self.learners.setdefault(name, []).append(loss.detach())
        self.datasets.append(batch.dataset)
        self.keys.extend(batch.keys)
        self.samples += len(batch.keys)

    def spent(self, stage: str, seconds: float) -> None:
        """Count host time of one stage."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def close(self, update: UpdateStats) -> None:
        """Count the optimizer step that ended it."""
        self.update = update
