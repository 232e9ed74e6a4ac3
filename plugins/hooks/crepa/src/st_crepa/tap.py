"""Tap: the tokens of some blocks, as a prediction leaves them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from st import Claims, Layer

if TYPE_CHECKING:
    from st import BlockCall, BlockResult, Proceed


TERM = "crepa"
"""What the tokens of a block are given as."""


class Tap:
    """Gives the output tokens of blocks, (B, S, D), where there are gradients.

    settings: the options that name the blocks.
    """

    layer: ClassVar[Layer] = Layer.TAP

    def __init__(self, blocks: Sequence[int], settings: tuple[str, ...]) -> None:
        self.blocks, self.settings = tuple(blocks), settings

    def claims(self, count: int) -> Claims:
        return Claims(reads_all_tokens=frozenset(self.blocks), settings=self.settings)

    def __call__(self, call: BlockCall, proceed: Proceed) -> BlockResult:
        import torch

        result = proceed(call)
        wanted = call.index in self.blocks and torch.is_grad_enabled()
        return result.plus(TERM, result.tokens) if wanted else result
