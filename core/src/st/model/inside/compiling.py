"""Compiling: each class of blocks is compiled once; the denoiser around them is not."""

from __future__ import annotations

from types import MethodType
from typing import TYPE_CHECKING, Any, Literal

from st.errors import StError
from st.model.inside.blocks import find_blocks
from st.options import Options

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from st.model.inside.blocks import BlockGroup


class CompileOptions(Options):
    """torch.compile for the denoiser's blocks."""

    blocks: bool = False
    """Compile the denoiser's blocks. The first steps take longer, and so does the first step of each new size."""
    mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = "default"
    """How hard the compiler tries, in torch's words."""
    dynamic: bool | None = None
    """Whether one compiled block serves all sizes; by default the compiler decides when it has seen the second one."""
    backend: str = "inductor"
    """The compiler. "aot_eager" and "eager" find out what breaks without compiling anything."""


def compile_blocks(denoiser: nn.Module, groups: Sequence[BlockGroup], options: CompileOptions) -> int:
    """Compile the blocks in place, before a BlockStack is put around them; the number of classes compiled.

    One compiled function serves all blocks of a class. Module and parameter names do not change and ``deepcopy`` still
    gives an independent denoiser. The whole denoiser is never compiled: each surrounded block would break its graph.
    """
    import torch

    if not options.blocks:
        return 0
    blocks = find_blocks(denoiser, groups)
    if not blocks:
        raise StError(f"compile.blocks = true, but no blocks are declared for {type(denoiser).__name__}")
    compiled_by_class: dict[type[nn.Module], Callable[..., Any]] = {}
    for block, group in blocks:
        if "forward" in block.__dict__:
            raise StError(
                f"the blocks at {group.path!r} cannot be compiled: something already replaces their forward",
                fix="set compile.blocks to false",
            )
        kind = type(block)
        if kind not in compiled_by_class:
            compiled_by_class[kind] = torch.compile(
                kind.forward, mode=_mode(options), dynamic=options.dynamic, backend=options.backend
            )
        # A bound method, so that deepcopy rebinds it to the copied block.
        block.__dict__["forward"] = MethodType(compiled_by_class[kind], block)
    return len(compiled_by_class)


def _mode(options: CompileOptions) -> str | None:
    """torch accepts a mode for inductor alone, and warns about "default" elsewhere."""
    return None if options.mode == "default" else options.mode
