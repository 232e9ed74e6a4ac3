"""The exponential moving average (EMA) of what is trained."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from pydantic import Field

from st.options import Options

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from st.train.ranks.ranks import Ranks


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
    """float32 copies of the trained parameters, moved towards them after every few steps.

    ranks: whose parts of parameters are averaged; where they are split, each rank keeps the average of its own.
    """

    def __init__(self, parameters: Sequence[Tensor], options: AverageOptions, ranks: Ranks | None = None) -> None:
        import torch

        from st.train.ranks.ranks import Single

        self.parameters, self.options = list(parameters), options
        self.ranks = ranks or Single(torch.device("cpu"))
        self.shadow = [part.float().clone() for part in self._parts()]
        self.updates = 0

    def update(self, step: int) -> None:
        """Take in the weights after optimizer step ``step``, where it is due."""
        import torch

        if step % self.options.every:
            return
        self.updates += 1
        weight = 1 - decay_at(self.updates, self.options)
        torch._foreach_lerp_(self.shadow, [part.float() for part in self._parts()], weight)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The averaged weights in the model for the length of a ``with``; the trained ones return bit for bit."""
        trained = [part.clone() for part in self._parts()]
        self.put_in_place()
        try:
            yield
        finally:
            self._write(trained)

    def put_in_place(self) -> None:
        """The averaged weights in the model, for good."""
        self._write(self.shadow)

    def state_dict(self) -> dict[str, object]:
        """The copies, whole and by position, and how often they were updated."""
        whole = [self.ranks.gather(part, p) for part, p in zip(self.shadow, self.parameters, strict=True)]
        return {"updates": self.updates, "shadow": whole}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Restore what ``state_dict`` gave, exactly."""
        import torch

        shadow, updates = state["shadow"], state["updates"]
        assert isinstance(shadow, list) and isinstance(updates, int)
        parts = [self.ranks.cut(whole, p) for whole, p in zip(shadow, self.parameters, strict=True)]
        torch._foreach_copy_(self.shadow, parts)
        self.updates = updates

    def _parts(self) -> list[Tensor]:
        return [self.ranks.part(parameter) for parameter in self.parameters]

    def _write(self, values: Sequence[Tensor]) -> None:
        import torch

        with torch.no_grad():
            torch._foreach_copy_(self._parts(), list(values))
        self.ranks.written()
