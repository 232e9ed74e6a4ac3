"""WholeTokens: says that a control network's residuals are for every token."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from st import Claims, Layer

if TYPE_CHECKING:
    from st import BlockCall, BlockResult, Proceed


class WholeTokens:
    """Changes nothing. What the network adds between blocks has a row for each token, so that none may be missing."""

    layer: ClassVar[Layer] = Layer.TAP

    def claims(self, count: int) -> Claims:
        return Claims(reads_all_tokens=frozenset(range(count)))

    def __call__(self, call: BlockCall, proceed: Proceed) -> BlockResult:
        return proceed(call)
