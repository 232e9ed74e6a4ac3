"""Names: the denoiser's layers as its makers call them, which is how kohya's tools and ComfyUI do."""

from __future__ import annotations

from st import FusedLayer as Layer
from st import LayerTable

QKV = (1, 1, 1)
BLOCK = (
    Layer("x_block.attn.qkv", ("attn.to_q", "attn.to_k", "attn.to_v"), QKV),
    Layer("x_block.attn.proj", ("attn.to_out.0",)),
    Layer("x_block.attn2.qkv", ("attn2.to_q", "attn2.to_k", "attn2.to_v"), QKV),
    Layer("x_block.attn2.proj", ("attn2.to_out.0",)),
    Layer("x_block.mlp.fc1", ("ff.net.0.proj",)),
    Layer("x_block.mlp.fc2", ("ff.net.2",)),
    Layer("x_block.adaLN_modulation.1", ("norm1.linear",)),
    Layer("context_block.attn.qkv", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), QKV),
    Layer("context_block.attn.proj", ("attn.to_add_out",)),
    Layer("context_block.mlp.fc1", ("ff_context.net.0.proj",)),
    Layer("context_block.mlp.fc2", ("ff_context.net.2",)),
    Layer("context_block.adaLN_modulation.1", ("norm1_context.linear",)),
)
WHOLE = (
    Layer("x_embedder.proj", ("pos_embed.proj",)),
    Layer("context_embedder", ("context_embedder",)),
    Layer("t_embedder.mlp.0", ("time_text_embed.timestep_embedder.linear_1",)),
    Layer("t_embedder.mlp.2", ("time_text_embed.timestep_embedder.linear_2",)),
    Layer("y_embedder.mlp.0", ("time_text_embed.text_embedder.linear_1",)),
    Layer("y_embedder.mlp.2", ("time_text_embed.text_embedder.linear_2",)),
    Layer("final_layer.linear", ("proj_out",)),
    # Theirs is shift, then scale; diffusers' is scale, then shift.
    Layer("final_layer.adaLN_modulation.1", ("norm_out.linear",), swapped=True),
)


def table(blocks: int) -> LayerTable:
    """The layers of a denoiser with so many blocks.

    The last block only reads text: its modulation is of the kind that the final layer has, with the same order.
    """
    last = Layer(
        f"joint_blocks.{blocks - 1}.context_block.adaLN_modulation.1",
        (f"transformer_blocks.{blocks - 1}.norm1_context.linear",),
        swapped=True,
    )
    return LayerTable({"joint_blocks": ("transformer_blocks", BLOCK)}, (*WHOLE, last))
