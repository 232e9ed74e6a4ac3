"""Recompute: gradient checkpointing as a block middleware."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from st.model.inside.blocks import Claims, Layer
from st.options import Options

if TYPE_CHECKING:
    from st.model.inside.blocks import BlockCall, BlockResult, Proceed


class RecomputeOptions(Options):
    """Trade time for memory."""

    every: int = Field(default=0, ge=0)
    """Forget the activations of every n-th block and compute them again in backward: 1 for all blocks, 0 for none."""


class Recompute:
    """Keeps only a block's inputs and runs it again in backward, with the same random state: gradients are identical.

    Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174.
    """

    layer: ClassVar[Layer] = Layer.RECOMPUTE

    def __init__(self, options: RecomputeOptions) -> None:
        assert options.every > 0, "0 means that no middleware is wanted"
        self.every = options.every

    def claims(self, count: int) -> Claims:
        return Claims()

    def __call__(self, call: BlockCall, proceed: Proceed) -> BlockResult:
        import torch
        from torch.utils.checkpoint import checkpoint

        if call.index % self.every or not torch.is_grad_enabled():
            return proceed(call)

        again = False

        def run(arguments: Mapping[str, Any]) -> BlockResult:
            nonlocal again
            one, again = replace(call, arguments=arguments, kept=False, recomputed=again), True
            return proceed(one)

        # The arguments go in by themselves: checkpoint saves the random state of the devices of the tensors that it is
        # given, and does not find those inside a dataclass.
        result: BlockResult = checkpoint(run, dict(call.arguments), use_reentrant=False)
        return result
