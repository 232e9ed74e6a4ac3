"""Names: the denoiser's layers as its makers call them, which is how kohya's tools and ComfyUI do."""

from __future__ import annotations

from st import FusedLayer as Layer
from st import LayerTable

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
TABLE = LayerTable(
    {
        "double_blocks": ("transformer_blocks", DOUBLE),
        "single_blocks": ("single_transformer_blocks", SINGLE),
    },
    WHOLE,
)
