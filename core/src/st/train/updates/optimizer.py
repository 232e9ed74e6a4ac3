"""The built-in optimizers, by the names that run files use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from st.registrar import StrategyKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from torch.optim import Optimizer

    ParamGroup = dict[str, Any]


OPTIMIZER: StrategyKind[Callable[[Sequence[ParamGroup], Any], Optimizer]] = StrategyKind(
    "optimizer", frozenset({"elementwise"})
)
"""``[optimizer] kind``: ``build(groups, options)``.

elementwise: each weight's step depends on that weight's own gradients and state alone, and state is tensors of the
parameter's shape or scalars. Only such an optimizer gives the same on parts of parameters, which is what engines that
split weights hand it.
"""


@runtime_checkable
class Measured(Protocol):
    """An optimizer with numbers of its own to show, such as a step size that it finds by itself."""

    def metrics(self) -> Mapping[str, float]:
        """Numbers by name; each becomes the metric ``optimizer/NAME``.

        Asked only when the report reads the device, after the last step of a reading.
        """
        ...


@runtime_checkable
class HasEvaluationMode(Protocol):
    """An optimizer that computes gradients at other weights than those that are meant to be used.

    A run is validated, evaluated and exported with the weights that are meant to be used. Its checkpoints hold both.
    """

    def evaluating(self) -> AbstractContextManager[None]:
        """The weights to use in the model for the length of a ``with``; the trained ones return bit for bit."""
        ...
