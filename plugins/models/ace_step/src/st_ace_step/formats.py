"""Formats: adapter files with the makers' names, which is how their own tools and ComfyUI write and read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from st import StError
from st.model.files.formats import AdapterFormat, LoraShape, comfyui_format, read_layout, split_key

if TYPE_CHECKING:
    from torch import Tensor

    Files = tuple[dict[str, Tensor], dict[str, str]]
    Ours = tuple[dict[str, Tensor], LoraShape]

PREFIX = "base_model.model"
PREFIXES = (PREFIX, "diffusion_model.decoder")
"""Of the makers' own files, and of those that ComfyUI's trainers write. The first is written."""
ENDS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out.0": "o_proj"}
WHOLE = {"proj_in_conv": "proj_in.1", "proj_out_conv": "proj_out.1"}


class MakersFormat(AdapterFormat):
    """``base_model.model.layers.0.self_attn.q_proj.lora_A.weight``, with ``alpha`` beside each where it is not the
    rank: diffusers reads such files where there is none."""

    def to_file(self, state: Mapping[str, Tensor], shape: LoraShape) -> Files:
        tensors, metadata = comfyui_format(PREFIX).to_file(*_renamed(state, shape, theirs))
        if shape.alphas == shape.ranks:
            tensors = {key: tensor for key, tensor in tensors.items() if not key.endswith(".alpha")}
        return tensors, {**metadata, "layer_names": "ACE-Step"}

    def from_file(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Ours:
        return _renamed(*read_layout(tensors, metadata, [comfyui_format(one) for one in PREFIXES]), ours)


def theirs(path: str) -> str:
    """One of our layers as the makers call it."""
    for end, other in ENDS.items():
        if path.endswith(f".{end}"):
            return f"{path.removesuffix(end)}{other}"
    return WHOLE.get(path, path)


def ours(path: str) -> str:
    """The inverse of ``theirs``."""
    for end, other in ENDS.items():
        if path.endswith(f".{other}"):
            return f"{path.removesuffix(other)}{end}"
    return next((end for end, other in WHOLE.items() if path == other), path)


def _renamed(state: Mapping[str, Tensor], shape: LoraShape, rename: Callable[[str], str]) -> Ours:
    renamed = {}
    for key, tensor in state.items():
        split = split_key(key)
        if split is None:
            raise StError(f"{key!r} is not the name of an adapter's tensor")
        renamed[f"{rename(split[0])}.{split[1]}"] = tensor
    ranks = {rename(path): rank for path, rank in shape.ranks.items()}
    return renamed, LoraShape(ranks, {rename(path): alpha for path, alpha in shape.alphas.items()})
