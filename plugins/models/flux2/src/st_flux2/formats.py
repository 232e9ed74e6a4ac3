"""Formats: adapter files as diffusers, kohya's tools and ComfyUI write and read them for this family."""

from __future__ import annotations

from st import FusedLayer as Layer
from st import LayerTable, comfyui_format, fused_format, kohya_format
from st.model.files.composed import folded_format

QKV = (1, 1, 1)
DOUBLE = (
    Layer("img_attn.qkv", ("attn.to_q", "attn.to_k", "attn.to_v"), QKV),
    Layer("img_attn.proj", ("attn.to_out.0",)),
    Layer("img_mlp.0", ("ff.linear_in",)),
    Layer("img_mlp.2", ("ff.linear_out",)),
    Layer("txt_attn.qkv", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), QKV),
    Layer("txt_attn.proj", ("attn.to_add_out",)),
    Layer("txt_mlp.0", ("ff_context.linear_in",)),
    Layer("txt_mlp.2", ("ff_context.linear_out",)),
)
SINGLE = (Layer("linear1", ("attn.to_qkv_mlp_proj",)), Layer("linear2", ("attn.to_out",)))
WHOLE = (
    Layer("img_in", ("x_embedder",)),
    Layer("txt_in", ("context_embedder",)),
    Layer("time_in.in_layer", ("time_guidance_embed.timestep_embedder.linear_1",)),
    Layer("time_in.out_layer", ("time_guidance_embed.timestep_embedder.linear_2",)),
    Layer("guidance_in.in_layer", ("time_guidance_embed.guidance_embedder.linear_1",)),
    Layer("guidance_in.out_layer", ("time_guidance_embed.guidance_embedder.linear_2",)),
    Layer("double_stream_modulation_img.lin", ("double_stream_modulation_img.linear",)),
    Layer("double_stream_modulation_txt.lin", ("double_stream_modulation_txt.linear",)),
    Layer("single_stream_modulation.lin", ("single_stream_modulation.linear",)),
    Layer("final_layer.linear", ("proj_out",)),
    # Theirs is shift, then scale; diffusers' is scale, then shift.
    Layer("final_layer.adaLN_modulation.1", ("norm_out.linear",), swapped=True),
)
TABLE = LayerTable(
    {"double_blocks": ("transformer_blocks", DOUBLE), "single_blocks": ("single_transformer_blocks", SINGLE)}, WHOLE
)
"""The denoiser's layers as its makers call them, which is how kohya's tools and ComfyUI do."""

KOHYA = fused_format(kohya_format, TABLE)
"""``lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight`` and so on, ``alpha`` beside each."""

COMFYUI = fused_format(lambda paths: folded_format(comfyui_format()), TABLE)
"""``diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight``: without alpha, so that diffusers reads them too."""
