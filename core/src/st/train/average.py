"""The exponential moving average (EMA) of what is trained."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from pydantic import Field

from st.options import Options

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor


class AverageOptions(Options):
    """Keep an exponential moving average of the trained weights; absent, none is kept."""

    decay: float = Field(0.995, gt=0, lt=1)
    """Largest share of the old average that an update keeps."""
    every: int = Field(1, ge=1)
    """Optimizer steps between two updates."""
    warmup: int = Field(0, ge=0)
    """Updates during which the average just follows the weights; afterwards the decay is fixed."""


def decay_at(update: int, options: AverageOptions) -> float:
    """The decay of the n-th update, counted from 1: min((1 + s) / (10 + s), decay) with s = n - 1; 0 where s <= 0.

    With a warm-up it is 0 until the warm-up is over and the fixed decay after it.
    """
    since = update - 1 - options.warmup
    if since <= 0:
        return 0.0
    return options.decay if options.warmup else min((1 + since) / (10 + since), options.decay)


class Average:
    """float32 copies of the trained parameters, moved towards them after every few steps."""

    def __init__(self, parameters: Sequence[Tensor], options: AverageOptions) -> None:
        self.parameters, self.options = list(parameters), options
        self.shadow = [p.detach().float().clone() for p in self.parameters]
        self.updates = 0

    def update(self, step: int) -> None:
        """Take in the weights after optimizer step ``step``, where it is due."""
        import torch

        if step % self.options.every:
            return
        self.updates += 1
        weight = 1 - decay_at(self.updates, self.options)
        current = [p.detach().float() for p in self.parameters]
        torch._foreach_lerp_(self.shadow, current, weight)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The averaged weights in the model for the length of a ``with``; the trained ones return bit for bit."""
        import torch

        trained = [p.detach().clone() for p in self.parameters]
        self.put_in_place()
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, trained)

    def put_in_place(self) -> None:
        """The averaged weights in the model, for good."""
        import torch

        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.shadow)

    def state_dict(self) -> dict[str, object]:
        """The copies, by position, and how often they were updated."""
        return {"updates": self.updates, "shadow": list(self.shadow)}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore what ``state_dict`` gave, exactly."""
        import torch

        shadow, updates = state["shadow"], state["updates"]
        assert isinstance(shadow, list) and isinstance(updates, int)
        torch._foreach_copy_(self.shadow, shadow)
        self.updates = updates
