"""Formats: adapter files with the names that Wan's makers gave its layers, and files of two experts."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from st import AdapterFormat, LoraShape, Planned, StError, comfyui_format, diffusers_format, kohya_format
from st.model.files.formats import UnknownTensors, renamed
from st.model.files.peft_layout import METADATA, TRAINED, header_table, joined_headers
from st.model.files.readers import MUSUBI
from st_wan.flavours import MODULES

if TYPE_CHECKING:
    from torch import Tensor

    Ours = tuple[dict[str, Tensor], LoraShape]
    Files = tuple[dict[str, Tensor], dict[str, str]]

T = TypeVar("T")

BOTH = "st_experts"
"""In the header of files that hold both experts."""

INSIDE: Mapping[str, str] = {
    **{f"attn1.{ours}": f"self_attn.{theirs}" for ours, theirs in zip(("to_q", "to_k", "to_v"), "qkv", strict=True)},
    **{f"attn2.{ours}": f"cross_attn.{theirs}" for ours, theirs in zip(("to_q", "to_k", "to_v"), "qkv", strict=True)},
    "attn1.to_out.0": "self_attn.o",
    "attn2.to_out.0": "cross_attn.o",
    "attn2.add_k_proj": "cross_attn.k_img",
    "attn2.add_v_proj": "cross_attn.v_img",
    "attn1.norm_q": "self_attn.norm_q",
    "attn1.norm_k": "self_attn.norm_k",
    "attn2.norm_q": "cross_attn.norm_q",
    "attn2.norm_k": "cross_attn.norm_k",
    "attn2.norm_added_k": "cross_attn.norm_k_img",
    "norm2": "norm3",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "proj_in": "before_proj",
    "proj_out": "after_proj",
}
"""Layers of a block: ours and the makers'."""
OUTSIDE: Mapping[str, str] = {
    "patch_embedding": "patch_embedding",
    "vace_patch_embedding": "vace_patch_embedding",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
    "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "proj_out": "head.head",
}
_INSIDE_BACK = {theirs: ours for ours, theirs in INSIDE.items()}
_OUTSIDE_BACK = {theirs: ours for ours, theirs in OUTSIDE.items()}
_BLOCK = re.compile(r"((?:vace_)?blocks\.\d+)\.(.+)")
_FLAT_BLOCK = re.compile(r"lora_unet_((?:vace_)?blocks)_(\d+)_(.+)")


def makers_name(path: str) -> str:
    """The makers' path of one of our layers. Raises StError where they have no such layer."""
    block = _BLOCK.fullmatch(path)
    theirs = INSIDE.get(block[2]) if block else OUTSIDE.get(path)
    if theirs is None:
        raise StError(
            f"{path!r} has no name in this format",
            fix='leave it out of adapter.targets, or set adapter.format to "diffusers"',
        )
    return f"{block[1]}.{theirs}" if block else theirs


def our_name(path: str) -> str:
    """The inverse of ``makers_name``."""
    block = _BLOCK.fullmatch(path)
    ours = _INSIDE_BACK.get(block[2]) if block else _OUTSIDE_BACK.get(path)
    if ours is None:
        raise StError(f"{path!r} is no layer of Wan", fix="name an adapter that was trained on it")
    return f"{block[1]}.{ours}" if block else ours


@dataclass(frozen=True, slots=True)
class Makers(AdapterFormat):
    """A layout of ComfyUI's or musubi-tuner's, with the makers' names. flat: whether dots are underscores."""

    flat: bool = False

    def to_file(self, state: Mapping[str, Tensor], shape: LoraShape) -> Files:
        return self._layout(()).to_file(*renamed(state, shape, makers_name))

    def from_file(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Ours:
        return renamed(*self._layout(tensors).from_file(tensors, metadata), our_name)

    def caveats(self, planned: Sequence[Planned]) -> Sequence[str]:
        return self._layout(()).caveats(planned)

    def _layout(self, keys: Iterable[str]) -> AdapterFormat:
        return kohya_format(sorted(_modules(keys)), reader=MUSUBI) if self.flat else comfyui_format()


@dataclass(frozen=True, slots=True)
class OfExperts(AdapterFormat):
    """Another layout twice in one file: each expert's keys after the name of its component."""

    inner: AdapterFormat

    def to_file(self, state: Mapping[str, Tensor], shape: LoraShape) -> Files:
        tensors: dict[str, Tensor] = {}
        header = {BOTH: " ".join(MODULES)}
        for component, module in MODULES.items():
            part = _after(state, module)
            if not part:
                continue
            own_shape = LoraShape(_after(shape.ranks, module), _after(shape.alphas, module))
            own, metadata = self.inner.to_file(part, own_shape)
            tensors |= {f"{component}.{key}": tensor for key, tensor in own.items()}
            header = joined_headers(header, _prefixed(metadata, component))
        return tensors, header

    def from_file(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Ours:
        if BOTH not in metadata:
            # Upstream's keys of either expert begin with the name of the first: whose it is cannot be told.
            raise StError(
                "this is an adapter of one expert, or of a model that is one",
                fix='set model.experts to "high" or "low", or name a file that a run of both wrote',
            )
        strange = [key for key in tensors if key.partition(".")[0] not in MODULES]
        if strange:
            raise UnknownTensors(strange, len(tensors), why=f"they are of neither {' nor '.join(MODULES)}")
        state: dict[str, Tensor] = {}
        ranks: dict[str, int] = {}
        alphas: dict[str, float] = {}
        for component, module in MODULES.items():
            part = _after(tensors, component)
            if not part:
                continue
            own, shape = self.inner.from_file(part, of_expert(metadata, component))
            state |= {f"{module}.{key}": tensor for key, tensor in own.items()}
            ranks |= {f"{module}.{path}": rank for path, rank in shape.ranks.items()}
            alphas |= {f"{module}.{path}": alpha for path, alpha in shape.alphas.items()}
        return state, LoraShape(ranks, alphas)

    def refusals(self, planned: Sequence[Planned]) -> Sequence[str]:
        return self.inner.refusals(planned)

    def caveats(self, planned: Sequence[Planned]) -> Sequence[str]:
        return self.inner.caveats(planned)


def formats(both: bool) -> dict[str, AdapterFormat]:
    """Layouts by name. One expert alone is written as upstream reads it, whichever it is."""
    if not both:
        return {"diffusers": diffusers_format("transformer"), "musubi": Makers(flat=True), "comfyui": Makers()}
    plain = {"diffusers": diffusers_format(""), "musubi": Makers(flat=True), "comfyui": Makers()}
    return {name: OfExperts(layout) for name, layout in plain.items()}


def write_parts(file: Path, parts: Mapping[str, str]) -> list[Path]:
    """A file of both experts as one for each, as upstream loads them. parts: component -> ending of its file's name.

    Raises OutputUnwritable.
    """
    from st.model.files.adapter_file import read_adapter_file, write_adapter_file

    tensors, metadata = read_adapter_file(file)
    written: list[Path] = []
    if BOTH not in metadata:
        return written
    for expert, ending in parts.items():
        own, header = _after(tensors, expert), of_expert(metadata, expert)
        if not any(_is_makers(key) for key in own):
            # Upstream loads either expert from keys of "transformer".
            own = {f"transformer.{key}": tensor for key, tensor in own.items()}
            header = _prefixed(header, "transformer")
        if own:
            written.append(file.with_name(f"{file.stem}-{ending}.safetensors"))
            write_adapter_file(written[-1], own, header)
    return written


def of_expert(metadata: Mapping[str, str], expert: str) -> dict[str, str]:
    """The header as it is for one expert alone."""
    header = {name: text for name, text in metadata.items() if name != BOTH}
    tables = {
        name: json.dumps(_after(header_table(header, name), expert)) for name in (METADATA, TRAINED) if name in header
    }
    return header | tables


def _prefixed(header: Mapping[str, str], component: str) -> dict[str, str]:
    """With the names of layers in it after a component's."""
    found = dict(header)
    for name in (METADATA, TRAINED):
        if name in header:
            named = {f"{component}.{key}": value for key, value in header_table(header, name).items()}
            found[name] = json.dumps(named, indent=2, sort_keys=True)
    return found


def _is_makers(key: str) -> bool:
    return key.startswith(("diffusion_model.", "lora_unet_"))


def _after(named: Mapping[str, T], expert: str) -> dict[str, T]:
    return {key.removeprefix(f"{expert}."): value for key, value in named.items() if key.startswith(f"{expert}.")}


def _modules(keys: Iterable[str]) -> set[str]:
    """The makers' paths that flat keys may stand for."""
    inside = {theirs.replace(".", "_"): theirs for theirs in _INSIDE_BACK}
    found = set(_OUTSIDE_BACK)
    for key in keys:
        block = _FLAT_BLOCK.fullmatch(key.partition(".")[0])
        if block and block[3] in inside:
            found.add(f"{block[1]}.{block[2]}.{inside[block[3]]}")
    return found
