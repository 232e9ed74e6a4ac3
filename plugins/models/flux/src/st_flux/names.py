"""Names: the denoiser's layers as its makers call them, which is how kohya's tools and ComfyUI do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Layer:
    """One of the makers' layers. theirs: its path. ours: the layers that it stands for, from its first output to its
    last. shares: their outputs, relative to one another. swapped: whether the halves of its outputs change places.
    """

    theirs: str
    ours: tuple[str, ...]
    shares: tuple[int, ...] = (1,)
    swapped: bool = False


QKV = (1, 1, 1)
DOUBLE = (
    Layer("img_attn.qkv", ("attn.to_q", "attn.to_k", "attn.to_v"), QKV),
    Layer("img_attn.proj", ("attn.to_out.0",)),
    Layer("img_mlp.0", ("ff.net.0.proj",)),
    Layer("img_mlp.2", ("ff.net.2",)),
    Layer("img_mod.lin", ("norm1.linear",)),
    Layer("txt_attn.qkv", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), QKV),
    Layer("txt_attn.proj", ("attn.to_add_out",)),
    Layer("txt_mlp.0", ("ff_context.net.0.proj",)),
    Layer("txt_mlp.2", ("ff_context.net.2",)),
    Layer("txt_mod.lin", ("norm1_context.linear",)),
)
SINGLE = (
    Layer("linear1", ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), (1, 1, 1, 4)),
    Layer("linear2", ("proj_out",)),
    Layer("modulation.lin", ("norm.linear",)),
)
WHOLE = (
    Layer("img_in", ("x_embedder",)),
    Layer("txt_in", ("context_embedder",)),
    Layer("time_in.in_layer", ("time_text_embed.timestep_embedder.linear_1",)),
    Layer("time_in.out_layer", ("time_text_embed.timestep_embedder.linear_2",)),
    Layer("vector_in.in_layer", ("time_text_embed.text_embedder.linear_1",)),
    Layer("vector_in.out_layer", ("time_text_embed.text_embedder.linear_2",)),
    Layer("guidance_in.in_layer", ("time_text_embed.guidance_embedder.linear_1",)),
    Layer("guidance_in.out_layer", ("time_text_embed.guidance_embedder.linear_2",)),
    Layer("final_layer.linear", ("proj_out",)),
    # Theirs is shift, then scale; diffusers' is scale, then shift.
    Layer("final_layer.adaLN_modulation.1", ("norm_out.linear",), swapped=True),
)
GROUPS: Mapping[str, tuple[str, tuple[Layer, ...]]] = {
    "double_blocks": ("transformer_blocks", DOUBLE),
    "single_blocks": ("single_transformer_blocks", SINGLE),
}
"""Lists of blocks by the makers' name: ours, and the layers of one block."""


def layers(names: Iterable[str]) -> tuple[Layer, ...]:
    """Every layer of a denoiser with as many blocks as these paths tell of, ours or theirs, dots or underscores."""
    names = tuple(names)
    found = []
    for theirs, (ours, inside) in GROUPS.items():
        numbers = re.compile(rf"(?<![a-z_]){ours}[._](\d+)|{theirs}[._](\d+)")
        matches = [match for name in names for match in numbers.finditer(name)]
        count = 1 + max((int(match[1] or match[2]) for match in matches), default=-1)
        for number in range(count):
            for one in inside:
                paths = tuple(f"{ours}.{number}.{path}" for path in one.ours)
                found.append(Layer(f"{theirs}.{number}.{one.theirs}", paths, one.shares, one.swapped))
    return (*found, *WHOLE)
