"""Projections: query, key and value of an attention as one layer while training, as three everywhere else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

FUSED: Mapping[str, tuple[str, str, str]] = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
}
"""Of an attention: the one layer by the three that it stands for, from top to bottom."""


def fuse(denoiser: nn.Module) -> None:
    """Put one layer in the place of three, in every attention; exactly the same product."""
    built: Any = denoiser
    built.fuse_qkv_projections()
    for module in denoiser.modules():
        for one, three in FUSED.items():
            if hasattr(module, one):
                # diffusers keeps them: a sixth of the denoiser's memory, and layers that an adapter would find.
                for name in three:
                    delattr(module, name)


def fused_names(targets: tuple[str, ...]) -> tuple[str, ...]:
    """Adapter targets as a fused denoiser has them."""
    renamed = [_fused_name(target) for target in targets]
    return tuple(dict.fromkeys(renamed))


def split_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All weights of a fused denoiser by the names of one that is not."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        path, _, kind = name.rpartition(".")
        parent, _, layer = path.rpartition(".")
        if layer in FUSED:
            parts = tensor.chunk(3)
            found |= {f"{parent}.{one}.{kind}": part for one, part in zip(FUSED[layer], parts, strict=True)}
        else:
            found[name] = tensor
    return found


def _fused_name(target: str) -> str:
    parent, _, layer = target.rpartition(".")
    for one, three in FUSED.items():
        if layer in three:
            return f"{parent}.{one}"
    return target
