"""Tap: the tokens of some blocks, as one prediction left them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

from st import Claims, Layer

if TYPE_CHECKING:
    from torch import Tensor

    from st import BlockCall, BlockResult, Proceed


class Tap:
    """Keeps the output tokens of blocks while the step predicts with gradients, and at no other time.

    settings: the options that name the blocks.
    """

    layer: ClassVar[Layer] = Layer.TAP

    def __init__(self, blocks: Sequence[int], settings: tuple[str, ...]) -> None:
        self.blocks, self.settings = tuple(blocks), settings
        self._open = False
        self._tokens: dict[int, Tensor] = {}

    def claims(self, count: int) -> Claims:
        return Claims(reads_all_tokens=frozenset(self.blocks), settings=self.settings)

    def __call__(self, call: BlockCall, proceed: Proceed) -> BlockResult:
        import torch

        result = proceed(call)
        # Only if empty: a block that is run again in backward must not change what the loss was made of.
        wanted = call.index in self.blocks and call.index not in self._tokens
        if wanted and self._open and torch.is_grad_enabled():
            self._tokens[call.index] = result.tokens
        return result

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Inside, tokens are kept; those of an earlier prediction are forgotten."""
        self._tokens, self._open = {}, True
        try:
            yield
        finally:
            self._open = False

    def take(self) -> Mapping[int, Tensor]:
        """The tokens by block, (B, S, D) each, once; nothing where no prediction was read."""
        tokens, self._tokens = self._tokens, {}
        return tokens
