"""Formats: adapter files as ComfyUI reads them for this family."""

from __future__ import annotations

from st import FusedLayer, LayerTable, comfyui_format, fused_format, reading_also

TABLE = LayerTable(
    {
        "blocks": (
            "transformer_blocks",
            (
                FusedLayer("attn.qkv", ("attn1.to_q", "attn1.to_k", "attn1.to_v"), (1, 1, 1)),
                FusedLayer("attn.proj", ("attn1.to_out.0",)),
                FusedLayer("cross_attn.q_linear", ("attn2.to_q",)),
                FusedLayer("cross_attn.kv_linear", ("attn2.to_k", "attn2.to_v"), (1, 1)),
                FusedLayer("cross_attn.proj", ("attn2.to_out.0",)),
                FusedLayer("mlp.fc1", ("ff.net.0.proj",)),
                FusedLayer("mlp.fc2", ("ff.net.2",)),
            ),
        )
    },
    (
        FusedLayer("x_embedder.proj", ("pos_embed.proj",)),
        FusedLayer("y_embedder.y_proj.fc1", ("caption_projection.linear_1",)),
        FusedLayer("y_embedder.y_proj.fc2", ("caption_projection.linear_2",)),
        FusedLayer("t_embedder.mlp.0", ("adaln_single.emb.timestep_embedder.linear_1",)),
        FusedLayer("t_embedder.mlp.2", ("adaln_single.emb.timestep_embedder.linear_2",)),
        FusedLayer("t_block.1", ("adaln_single.linear",)),
        FusedLayer("final_layer.linear", ("proj_out",)),
    ),
)
"""The layers of the model's original code."""

COMFYUI = reading_also(comfyui_format("transformer"), fused_format(lambda paths: comfyui_format(), TABLE))
"""``transformer.<our path>.lora_A.weight`` with ``alpha`` beside it, which ComfyUI maps onto the original layers.

Files that name those layers themselves, ``diffusion_model.blocks.0.attn.qkv``, are read too.
"""
