"""Formats: adapter files as diffusers, kohya's tools and ComfyUI write and read them for this family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from st import StError
from st.model.files.formats import AdapterFormat, LoraShape, comfyui_format, kohya_format
from st_flux.names import layers
from st_flux.projections import FUSED
from st_flux.updates import Update, read_updates, share, split, stack, unstack, write_updates

if TYPE_CHECKING:
    from torch import Tensor

    Files = tuple[dict[str, Tensor], dict[str, str]]
    Ours = tuple[dict[str, Tensor], LoraShape]


class Kohya(AdapterFormat):
    """``lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight`` and so on: the makers' layers, ``alpha`` beside each.

    A layer that stands for several of ours holds their updates as ``stack`` has it, which is what kohya's own converter
    writes and diffusers reads.
    """

    def to_file(self, state: Mapping[str, Tensor], shape: LoraShape) -> Files:
        theirs, theirs_shape = as_makers(state, shape)
        return kohya_format(tuple(theirs_shape.ranks)).to_file(theirs, theirs_shape)

    def from_file(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Ours:
        paths = [layer.theirs for layer in layers(tensors)]
        return from_makers(*kohya_format(paths).from_file(tensors, metadata))


class ComfyUI(AdapterFormat):
    """``transformer.<our path>.lora_A.weight`` with ``alpha`` beside it, which ComfyUI maps onto the makers' layers.

    Files that name the makers' layers themselves, ``diffusion_model.double_blocks.0.img_attn.qkv``, are read too.
    """

    def to_file(self, state: Mapping[str, Tensor], shape: LoraShape) -> Files:
        return comfyui_format("transformer").to_file(state, shape)

    def from_file(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Ours:
        if any(name.startswith(("diffusion_model.", "model.diffusion_model.")) for name in tensors):
            return from_makers(*comfyui_format().from_file(tensors, metadata))
        return comfyui_format("transformer").from_file(tensors, metadata)


@dataclass(frozen=True, slots=True)
class Unfused(AdapterFormat):
    """Another format, for a denoiser whose query, key and value are one layer: its files know three."""

    inner: AdapterFormat

    def to_file(self, state: Mapping[str, Tensor], shape: LoraShape) -> Files:
        updates: dict[str, Update] = {}
        for path, one in read_updates(state, shape).items():
            parent, _, layer = path.rpartition(".")
            if layer in FUSED:
                updates |= {f"{parent}.{name}": part for name, part in zip(FUSED[layer], split(one, 3), strict=True)}
            else:
                updates[path] = one
        return self.inner.to_file(*write_updates(updates))

    def from_file(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Ours:
        updates = read_updates(*self.inner.from_file(tensors, metadata))
        found = {}
        for path in list(updates):
            parent, _, layer = path.rpartition(".")
            one = next((one for one, three in FUSED.items() if layer in three), "")
            if not one:
                found[path] = updates[path]
            elif f"{parent}.{one}" not in found:
                parts = [updates.get(f"{parent}.{name}") for name in FUSED[one]]
                found[f"{parent}.{one}"] = share(parts) or stack(parts, (1, 1, 1))
        return write_updates(found)


def as_makers(state: Mapping[str, Tensor], shape: LoraShape) -> Ours:
    """Updates of our layers as updates of the makers'. Raises StError naming a layer that they do not have."""
    updates = read_updates(state, shape)
    found, named = {}, set[str]()
    for layer in layers(updates):
        parts = [updates.get(path) for path in layer.ours]
        if any(part is not None for part in parts):
            whole = parts[0] if len(parts) == 1 else None
            found[layer.theirs] = _swapped(whole or stack(parts, layer.shares), layer.swapped)
            named.update(layer.ours)
    if strange := sorted(updates.keys() - named):
        raise StError(
            f"{len(strange)} layers have no name in this format, such as {strange[0]!r}",
            fix='leave them out of adapter.targets, or set adapter.format to "diffusers"',
        )
    return write_updates(found)


def from_makers(state: Mapping[str, Tensor], shape: LoraShape) -> Ours:
    """The inverse of ``as_makers``. Raises StError naming a layer that is not one of the makers'."""
    updates = read_updates(state, shape)
    found: dict[str, Update] = {}
    by_theirs = {layer.theirs: layer for layer in layers(updates)}
    for path, one in updates.items():
        if path not in by_theirs:
            raise StError(f"{path!r} is no layer of Flux.1", fix="name an adapter that was trained on it")
        layer = by_theirs[path]
        parts: Sequence[Update | None] = [_swapped(one, layer.swapped)]
        if len(layer.ours) > 1:
            parts = unstack(one, layer.shares)
        found |= {ours: part for ours, part in zip(layer.ours, parts, strict=True) if part is not None}
    return write_updates(found)


def _swapped(one: Update, swapped: bool) -> Update:
    """With the halves of its outputs exchanged, where they are in another order."""
    if not swapped:
        return one
    magnitude = None if one.magnitude is None else _exchanged(one.magnitude)
    return replace(one, up=_exchanged(one.up), magnitude=magnitude)


def _exchanged(outputs: Tensor) -> Tensor:
    return outputs.roll(len(outputs) // 2, 0)
