"""Names of the U-Net's layers in the model's original code, which kohya's tools and ComfyUI go by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

WHOLE: Mapping[str, str] = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
IN_RESNET: Mapping[str, str] = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def original_names(paths: Iterable[str]) -> dict[str, str]:
    """The original name of every layer of a U-Net that has one, by its path in diffusers.

    paths: of all of its modules. The original code counts the blocks of each half in one list: a block of diffusers is
    as many of them as it has layers, and one more where it changes the resolution.
    """
    known = set(paths)
    stride = sum(path.startswith("down_blocks.0.resnets.") and path.count(".") == 3 for path in known) + 1
    named = {path: _original(path, stride, known) for path in paths}
    return {path: name for path, name in named.items() if name}


def _original(path: str, stride: int, known: set[str]) -> str:
    """'' for a container, an activation, a dropout."""
    match path.split("."):
        case ["down_blocks", block, "downsamplers", "0", "conv"]:
            return f"input_blocks.{stride * (int(block) + 1)}.0.op"
        case ["down_blocks", block, "resnets" | "attentions" as kind, layer, *rest]:
            return _inside(f"input_blocks.{stride * int(block) + int(layer) + 1}", kind, rest)
        case ["mid_block", "resnets", layer, *rest] if rest:
            name = IN_RESNET.get(".".join(rest), "")
            return f"middle_block.{2 * int(layer)}.{name}" if name else ""
        case ["mid_block", "attentions", "0", *rest] if rest:
            return f"middle_block.1.{'.'.join(rest)}"
        case ["up_blocks", block, "upsamplers", "0", "conv"]:
            place = 2 if f"up_blocks.{block}.attentions" in known else 1
            return f"output_blocks.{stride * int(block) + stride - 1}.{place}.conv"
        case ["up_blocks", block, "resnets" | "attentions" as kind, layer, *rest]:
            return _inside(f"output_blocks.{stride * int(block) + int(layer)}", kind, rest)
    return WHOLE.get(path, "")


def _inside(block: str, kind: str, rest: list[str]) -> str:
    path = ".".join(rest)
    name = IN_RESNET.get(path, "") if kind == "resnets" else path
    return f"{block}.{0 if kind == 'resnets' else 1}.{name}" if name else ""
