"""Formats: adapter files as ComfyUI reads them, under the names of the model's makers."""

from __future__ import annotations

from st import FusedLayer as Layer
from st import LayerTable, comfyui_format, fused_format
from st.model.files.composed import folded_format

INSIDE = (
    Layer("q_proj", ("attn.to_q",)),
    Layer("k_proj", ("attn.to_k",)),
    Layer("v_proj", ("attn.to_v",)),
    Layer("attn_out", ("attn.to_out.0",)),
    Layer("mlp_in", ("ff.linear_in",)),
    Layer("mlp_out", ("ff.linear_out",)),
)
MODES = ("image", "image_cond")
WHOLE = (
    *(Layer(f"emb_in.{mode}", (f"x_embedders.{mode}",)) for mode in MODES),
    Layer("txt_in", ("context_embedder",)),
    *(
        Layer(f"{stream}_stream_modulations.{mode}.lin", (f"{stream}_stream_modulations.{mode}.linear",))
        for stream in ("early", "single")
        for mode in (*MODES, "txt")
    ),
    Layer("time_in.in_layer", ("timestep_embedder.linear_1",)),
    Layer("time_in.out_layer", ("timestep_embedder.linear_2",)),
    Layer("ref_time_in.in_layer", ("target_timestep_embedder.linear_1",)),
    Layer("ref_time_in.out_layer", ("target_timestep_embedder.linear_2",)),
    Layer("final_layer.image.linear", ("proj_out",)),
    # Theirs is shift, then scale; diffusers' is scale, then shift.
    Layer("final_layer.image.adaLN_modulation.1", ("norm_out.linear",), swapped=True),
)
TABLE = LayerTable(
    {
        **{f"content_mode_blocks.{mode}": (f"mode_blocks.{mode}", INSIDE) for mode in MODES},
        "txt_mode_blocks": ("txt_mode_blocks", INSIDE),
        "single_blocks": ("single_transformer_blocks", INSIDE),
    },
    WHOLE,
)
"""The denoiser's layers as its makers call them."""

COMFYUI = fused_format(lambda paths: folded_format(comfyui_format()), TABLE)
"""``diffusion_model.single_blocks.0.q_proj.lora_A.weight``: without alpha, so that diffusers reads them too."""
