"""Masked: keeps a denoiser's attention from the padding behind shorter texts of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


@contextmanager
def padding_hidden(denoiser: nn.Module, mask: Tensor | None) -> Iterator[None]:
    """Hand a mask (B, L), bool, to the cross attention of every block until the context ends; None hides nothing.

    The blocks have an argument for it, and the denoiser does not pass one: texts of one length are all that its
    pipeline knows. A hook sets it before whatever surrounds the block runs, so that a recomputation has it too.
    """
    with ExitStack() as stack:
        if mask is not None:
            hidden = mask[:, None, None, :]

            def give(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
                return args, {**kwargs, "encoder_attention_mask": hidden}

            blocks = denoiser.get_submodule("layers").children()
            for handle in [block.register_forward_pre_hook(give, with_kwargs=True) for block in blocks]:
                stack.callback(handle.remove)
        yield
