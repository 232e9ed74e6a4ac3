"""Formats: adapter files as ComfyUI and kohya's tools write and read them for this family."""

from __future__ import annotations

from st import FusedLayer, LayerTable, comfyui_format, fused_format, kohya_format

_BLOCK = (
    # Three query heads share one of keys and values.
    FusedLayer("attention.qkv", ("attn.to_q", "attn.to_k", "attn.to_v"), (3, 1, 1)),
    FusedLayer("attention.out", ("attn.to_out.0",)),
    *(FusedLayer(f"feed_forward.w{number}", (f"feed_forward.linear_{number}",)) for number in (1, 2, 3)),
    FusedLayer("adaLN_modulation.1", ("norm1.linear",)),
)
_WHOLE = {
    "x_embedder": "x_embedder",
    "final_layer.linear": "norm_out.linear_2",
    "final_layer.adaLN_modulation.1": "norm_out.linear_1",
    "cap_embedder.1": "time_caption_embed.caption_embedder.1",
    "t_embedder.mlp.0": "time_caption_embed.timestep_embedder.linear_1",
    "t_embedder.mlp.2": "time_caption_embed.timestep_embedder.linear_2",
}
MAKERS = LayerTable(
    {group: (group, _BLOCK) for group in ("noise_refiner", "context_refiner", "layers")},
    tuple(FusedLayer(theirs, (ours,)) for theirs, ours in _WHOLE.items()),
)
"""The layers as their makers name them: query, key and value are one."""

COMFYUI = fused_format(lambda paths: comfyui_format(), MAKERS)
"""``diffusion_model.layers.0.attention.qkv.lora_A.weight`` and so on, ``alpha`` beside each."""

KOHYA = fused_format(kohya_format, MAKERS)
"""``lora_unet_layers_0_attention_qkv.lora_down.weight`` and so on, ``alpha`` beside each."""
