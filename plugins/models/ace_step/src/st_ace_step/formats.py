"""Formats: adapter files with the makers' names, which is how their own tools and ComfyUI write and read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from st import AdapterFormat, LoraShape, Planned, comfyui_format, reading_also
from st.model.files.formats import renamed

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
        tensors, metadata = comfyui_format(PREFIX).to_file(*renamed(state, shape, theirs))
        if shape.ranks and shape.alphas == shape.ranks:
            moot = {f"{PREFIX}.{theirs(path)}.alpha" for path in shape.ranks}
            tensors = {key: tensor for key, tensor in tensors.items() if key not in moot}
        return tensors, {**metadata, "layer_names": "ACE-Step"}

    def from_file(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Ours:
        return renamed(*reading_also(*(comfyui_format(one) for one in PREFIXES)).from_file(tensors, metadata), ours)

    def caveats(self, planned: Sequence[Planned]) -> Sequence[str]:
        return comfyui_format().caveats(planned)


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
