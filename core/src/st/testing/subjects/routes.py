"""Tap and KeepTokens: the plainest middleware of their layers, to look at blocks and to run them on fewer tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from st.model.inside.blocks import Claims, Layer

if TYPE_CHECKING:
    from torch import Tensor

    from st.model.inside.blocks import BlockCall, BlockResult, Proceed


class Tap:
    """Remembers the stream tokens that went into each block and came out of it in the last pass, by block index."""

    layer: ClassVar[Layer] = Layer.TAP

    def __init__(self) -> None:
        self.inputs: dict[int, Tensor] = {}
        self.outputs: dict[int, Tensor] = {}

    def claims(self, count: int) -> Claims:
        return Claims()

    def __call__(self, call: BlockCall, proceed: Proceed) -> BlockResult:
        self.inputs[call.index] = call.tokens.detach().clone()
        result = proceed(call)
        self.outputs[call.index] = result.tokens.detach().clone()
        return result


class KeepTokens:
    """Runs blocks ``first`` to ``last`` on the tokens ``keep`` (K,) only; the others rejoin after ``last``."""

    layer: ClassVar[Layer] = Layer.ROUTE

    def __init__(self, first: int, last: int, keep: Tensor) -> None:
        self.first, self.last, self.keep = first, last, keep

    def claims(self, count: int) -> Claims:
        return Claims(drops_tokens=range(self.first, self.last))

    def __call__(self, call: BlockCall, proceed: Proceed) -> BlockResult:
        if not self.first <= call.index <= self.last:
            return proceed(call)
        if call.index == self.first:
            self.everything = call.tokens
            call = call.dropping(self.keep)
        result = proceed(call)
        if call.index == self.last:
            result = result.restoring(self.everything.index_copy(1, self.keep, result.tokens))
        return result
