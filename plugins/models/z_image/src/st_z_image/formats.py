"""Formats: adapter files as diffusers, ComfyUI and kohya's tools write and read them for this family."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from st import FusedLayer, LayerTable, StError, comfyui_format, fused_format, kohya_format, reading_also, renamed_format

if TYPE_CHECKING:
    from st import AdapterFormat

_BLOCK = (
    FusedLayer("attention.qkv", ("attention.to_q", "attention.to_k", "attention.to_v"), (1, 1, 1)),
    FusedLayer("attention.out", ("attention.to_out.0",)),
    *(FusedLayer(path, (path,)) for path in ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3")),
    FusedLayer("adaLN_modulation.0", ("adaLN_modulation.0",)),
)
_WHOLE = {
    "x_embedder": "all_x_embedder.2-1",
    "final_layer.linear": "all_final_layer.2-1.linear",
    "final_layer.adaLN_modulation.1": "all_final_layer.2-1.adaLN_modulation.1",
    "cap_embedder.1": "cap_embedder.1",
    "t_embedder.mlp.0": "t_embedder.mlp.0",
    "t_embedder.mlp.2": "t_embedder.mlp.2",
}
MAKERS = LayerTable(
    {group: (group, _BLOCK) for group in ("noise_refiner", "context_refiner", "layers")},
    tuple(FusedLayer(theirs, (ours,)) for theirs, ours in _WHOLE.items()),
)
"""The layers as the single file that ComfyUI loads has them: query, key and value are one."""


def comfyui() -> AdapterFormat:
    """``diffusion_model.layers.0.attention.to_q.lora_A.weight`` with ``alpha`` beside it, which ComfyUI maps itself.

    Files that name the single file's own layers, ``diffusion_model.layers.0.attention.qkv``, are read too.
    """
    ours = renamed_format(comfyui_format(), str, _not_of_the_makers)
    return reading_also(ours, fused_format(lambda paths: comfyui_format(), MAKERS))


def _not_of_the_makers(path: str) -> str:
    """The path itself. Raises StError for one that only the single file has."""
    if path.endswith((".attention.qkv", ".attention.out")) or path.partition(".")[0] in ("x_embedder", "final_layer"):
        raise StError(f"{path!r} is a layer of the single file")
    return path


def kohya(modules: Callable[[], Iterable[str]]) -> AdapterFormat:
    """``lora_unet_layers_0_attention_to_q.lora_down.weight`` and so on, as musubi-tuner writes.

    modules: every module path of the denoiser. Files that name the single file's own layers are read too.
    """
    return reading_also(kohya_format(modules), fused_format(kohya_format, MAKERS))
