"""The engine ``ddp``: every rank holds the whole model and averages gradients with the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

from st.train.ranks.group import Group

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from st.model.inside.blocks import BlockGroup


class Ddp(Group):
    """Data parallel.

    Gradients are averaged once, after the last microbatch, rather than by torch's DistributedDataParallel during
    backward: that wrapper sees only what runs inside its ``forward``, and neither projection heads of techniques nor a
    second prediction do.
    """

    def describe(self) -> str:
        return f"ddp, {self.size} ranks, {self.backend} on {self.device.type}"

    def shard(self, denoiser: nn.Module, blocks: Sequence[BlockGroup]) -> nn.Module:
        self.broadcast([parameter for parameter in denoiser.parameters() if parameter.requires_grad])
        return denoiser

    def backward(self, loss: Tensor, parameters: Sequence[Tensor] | None = None, *, again: bool = False) -> None:
        self.scaled(loss).backward(retain_graph=again or None, inputs=parameters)  # type: ignore[no-untyped-call]

    def synchronise(self, parameters: Sequence[Tensor]) -> None:
        self.average_gradients(parameters)
