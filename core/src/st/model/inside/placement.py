"""Placement: weights of blocks that are where they compute only while they do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from st.model.inside.blocks import BlockCall
    from st.model.inside.stream import BlockGroup

Direction = Literal["forward", "backward"]


class Placement(Protocol):
    """Brings the frozen weights of a block in before it computes, and sends them away after.

    What learns, and what lies outside of blocks, stays on the device. Between ``leave`` and ``enter`` the weights may
    lie anywhere, whole and readable. In backward a block is entered when its gradient arrives and left when that of
    another block does, or at the end: what is computed again of it runs in between.
    """

    def adopt(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        """Take over the blocks, by their numbers, once the adapter is attached: they are on the host, or, quantized, on
        the device. device: where they compute.
        """

    def enter(self, index: int, direction: Direction) -> None:
        """The block is about to compute. The one that follows is the next in forward, the one before in backward."""

    def leave(self, index: int, direction: Direction) -> None:
        """It has: what was queued on the device may still run."""


def settle(denoiser: nn.Module, groups: Sequence[BlockGroup], placement: Placement, device: torch.device) -> None:
    """What stays onto the device, the rest to the placement."""
    from st.model.inside.blocks import find_blocks

    for tensor in staying(denoiser, groups):
        tensor.data = tensor.data.to(device)
    placement.adopt([block for block, _ in find_blocks(denoiser, groups)], device)


def staying(denoiser: nn.Module, groups: Sequence[BlockGroup]) -> list[Tensor]:
    """Everything but the frozen weights of blocks: what learns, buffers, and what lies outside of them."""
    from st.model.inside.blocks import find_blocks

    blocks = [block for block, _ in find_blocks(denoiser, groups)]
    away = {parameter for block in blocks for parameter in block.parameters() if not parameter.requires_grad}
    return [*(one for one in denoiser.parameters() if one not in away), *denoiser.buffers()]


@dataclass(frozen=True, slots=True)
class _Seen:
    """A weight as autograd has seen it. offset: from where the weight begins."""

    weight: Tensor
    size: Sequence[int]
    stride: Sequence[int]
    offset: int

    def found(self) -> Tensor:
        """The same view of the weight as it is now."""
        weight = self.weight.detach()
        return weight.as_strided(self.size, self.stride, weight.storage_offset() + self.offset)


def by_reference(block: nn.Module) -> AbstractContextManager[object]:
    """Inside, what autograd keeps of the block's frozen weights is no tensor of its own: it is looked up in backward.

    It keeps views, such as a transposed weight, that would hold the memory of a weight that was sent away, or what has
    taken its place.
    """
    import torch
    from torch import nn

    plain = (torch.Tensor, nn.Parameter)
    weights = {
        one.untyped_storage().data_ptr(): one
        for one in block.parameters()
        if not one.requires_grad and type(one.data) is torch.Tensor
    }

    def keep(tensor: Tensor) -> Tensor | _Seen:
        weight = weights.get(tensor.untyped_storage().data_ptr()) if type(tensor) in plain else None
        if weight is None or weight.dtype != tensor.dtype:
            return tensor
        return _Seen(weight, tensor.size(), tensor.stride(), int(tensor.storage_offset() - weight.storage_offset()))

    def find(kept: Tensor | _Seen) -> Tensor:
        return kept.found() if isinstance(kept, _Seen) else kept

    return torch.autograd.graph.saved_tensors_hooks(keep, find)


class Presence:
    """Tells a placement when each block of one denoiser computes, in both directions."""

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self._backward: int | None = None

    def __call__(self, call: BlockCall, compute: Callable[[], Any]) -> Any:
        """What ``compute``, the call of the block, gives."""
        import torch

        index = call.index
        if call.recomputed:
            self._arrive(index)
            return compute()
        self._placement.enter(index, "forward")
        try:
            # Where the block is computed again, nothing is kept of it, and that is done by hooks of the same kind.
            with by_reference(call.block) if call.kept and torch.is_grad_enabled() else nullcontext():
                value = compute()
        finally:
            self._placement.leave(index, "forward")
        if torch.is_grad_enabled():
            self._watch(value, index)
        return value

    def _watch(self, value: Any, index: int) -> None:
        from torch.utils._pytree import tree_leaves

        def arrive(gradient: Tensor) -> None:
            self._arrive(index)

        for output in tree_leaves(value):
            if getattr(output, "requires_grad", False):
                output.register_hook(arrive)

    def _arrive(self, index: int) -> None:
        """A gradient has reached the block. What autograd has left of another is done: it runs what is latest first."""
        import torch

        if self._backward == index:
            return
        self._depart()
        self._placement.enter(index, "backward")
        self._backward = index
        torch.autograd.Variable._execution_engine.queue_callback(self._depart)

    def _depart(self) -> None:
        if self._backward is not None:
            index, self._backward = self._backward, None
            self._placement.leave(index, "backward")
