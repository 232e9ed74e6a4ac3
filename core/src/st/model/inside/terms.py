"""Terms: what block calls give beside their tokens, and whom it reaches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from st.errors import StError
from st.model.inside.blocks import Layer
from st.model.inside.claims import Claims

if TYPE_CHECKING:
    from torch import Tensor

    from st.model.inside.blocks import BlockCall, BlockResult, Proceed

    Found = Mapping[str, Mapping[int, list[Tensor]]]


class Terms:
    """Gathers the terms of block calls for whoever reads. Where nobody does, they are let go."""

    def __init__(self) -> None:
        self._open: list[dict[str, dict[int, list[Tensor]]]] = []

    @contextmanager
    def reading(self) -> Iterator[Found]:
        """Inside, what the passes of the denoiser give: by name and block, one for each pass, with its gradient.

        The innermost reader has it alone. Blocks that are computed again in backward give nothing more.
        """
        found: dict[str, dict[int, list[Tensor]]] = {}
        self._open.append(found)
        try:
            yield found
        finally:
            self._open.remove(found)

    def give(self, index: int, terms: Mapping[str, Tensor]) -> None:
        """Take the terms of one call of a block."""
        if self._open:
            for name, term in terms.items():
                self._open[-1].setdefault(name, {}).setdefault(index, []).append(term)


class ModuleTap:
    """Gives, as the term ``name``, what a module inside of each block returns: a router's logits, attention weights.

    path: of the module inside of the block; blocks without it give nothing. pick: from what the module returns to the
    term. Only with gradients. Not for compiled blocks, whose modules are not called.
    """

    layer: ClassVar[Layer] = Layer.TAP

    def __init__(self, name: str, path: str, pick: Callable[[Any], Tensor]) -> None:
        self.name, self.path, self.pick = name, path, pick

    def claims(self, count: int) -> Claims:
        return Claims()

    def __call__(self, call: BlockCall, proceed: Proceed) -> BlockResult:
        import torch

        if not torch.is_grad_enabled():
            return proceed(call)
        try:
            module = call.block.get_submodule(self.path)
        except AttributeError:
            return proceed(call)
        returned: list[Any] = []
        # For this call only: what backward computes again is not given again, and nothing but a reference is kept
        # inside of what is recomputed.
        handle = module.register_forward_hook(lambda _, arguments, output: returned.append(output))
        try:
            result = proceed(call)
        finally:
            handle.remove()
        if not returned:
            raise StError(
                f"{self.path!r} inside of block {call.index} was not called, so it gives no {self.name!r}",
                fix="set compile.blocks to false",
            )
        return result.plus(self.name, self.pick(returned[0]))
