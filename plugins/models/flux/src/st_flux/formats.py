"""Formats: adapter files as diffusers, kohya's tools and ComfyUI write and read them for this family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from st import AdapterFormat, LoraShape, Planned, StError, comfyui_format, fused_format, kohya_format
from st.model.adapters.targets import is_named
from st.model.files.formats import by_layer
from st.model.files.stacking import Update, read_updates, share, split, stack, write_updates
from st_flux.names import TABLE
from st_flux.projections import FUSED

if TYPE_CHECKING:
    from torch import Tensor

    Files = tuple[dict[str, Tensor], dict[str, str]]
    Ours = tuple[dict[str, Tensor], LoraShape]

KOHYA = fused_format(kohya_format, TABLE)
"""``lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight`` and so on: the makers' layers, ``alpha`` beside each.

A layer that stands for several of ours holds their updates stacked, which is what kohya's own converter writes and
diffusers reads.
"""
_DOTTED = fused_format(lambda paths: comfyui_format(), TABLE)


class ComfyUI(AdapterFormat):
    """``transformer.<our path>.lora_A.weight`` with ``alpha`` beside it, which ComfyUI maps onto the makers' layers.

    Files that name the makers' layers themselves, ``diffusion_model.double_blocks.0.img_attn.qkv``, are read too.
    """

    def to_file(self, state: Mapping[str, Tensor], shape: LoraShape) -> Files:
        return comfyui_format("transformer").to_file(state, shape)

    def from_file(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Ours:
        if any(name.startswith(("diffusion_model.", "model.diffusion_model.")) for name in tensors):
            return _DOTTED.from_file(tensors, metadata)
        return comfyui_format("transformer").from_file(tensors, metadata)

    def caveats(self, planned: Sequence[Planned]) -> Sequence[str]:
        return comfyui_format().caveats(planned)


@dataclass(frozen=True, slots=True)
class Unfused(AdapterFormat):
    """Another format, for a denoiser whose query, key and value are one layer: its files know three."""

    inner: AdapterFormat

    def to_file(self, state: Mapping[str, Tensor], shape: LoraShape) -> Files:
        updates, others = dict[str, Update](), dict[str, "Tensor"]()
        for path, parts in by_layer(state).items():
            if path not in shape.ranks:
                others |= _three(path, parts)
        for path, one in read_updates(state, shape).items():
            parent, _, layer = path.rpartition(".")
            if layer in FUSED:
                updates |= {f"{parent}.{name}": part for name, part in zip(FUSED[layer], split(one, 3), strict=True)}
            else:
                updates[path] = one
        theirs, theirs_shape = write_updates(updates)
        return self.inner.to_file({**theirs, **others}, theirs_shape)

    def from_file(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Ours:
        state, shape = self.inner.from_file(tensors, metadata)
        updates = read_updates(state, shape)
        others = {
            f"{path}.{part}": one
            for path, parts in by_layer(state).items()
            if path not in updates
            for part, one in parts.items()
        }
        found = {}
        for path in list(updates):
            parent, _, layer = path.rpartition(".")
            one = next((one for one, three in FUSED.items() if layer in three), "")
            if not one:
                found[path] = updates[path]
            elif f"{parent}.{one}" not in found:
                parts = [updates.get(f"{parent}.{name}") for name in FUSED[one]]
                found[f"{parent}.{one}"] = share(parts) or stack(parts, (1, 1, 1))
        ours, our_shape = write_updates(found)
        return {**ours, **others}, our_shape

    def refusals(self, planned: Sequence[Planned]) -> Sequence[str]:
        fused = {one for one in planned if one.kind not in _PRODUCTS for name in FUSED if _names(one.targets, name)}
        found = [f"it has three layers where the run trains one, and {one.called} cannot be parted" for one in fused]
        return found or self.inner.refusals(planned)

    def caveats(self, planned: Sequence[Planned]) -> Sequence[str]:
        return self.inner.caveats(planned)


_PRODUCTS = ("lora", "locon", "dylora")


def _names(targets: Sequence[str], layer: str) -> bool:
    return any(is_named(f"attn.{layer}", target.rpartition(".")[2]) for target in targets)


def _three(path: str, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An update of another kind. Raises StError for one of a layer that files have three for."""
    if path.rpartition(".")[2] in FUSED:
        raise StError(
            f"the update of {path!r} has no name in this format",
            why="files have three layers there, and only low-rank updates can be parted",
            fix="set model.fuse_qkv to false",
        )
    return {f"{path}.{part}": tensor for part, tensor in parts.items()}
