"""Layers of three published models by their makers' names, with the shapes of their weights: what other programs know.

ComfyUI, kohya's tools and musubi-tuner know a model by the names in its makers' weights. The rules are those of the
published architectures: how many blocks there are, what is in one, how wide it is.
"""

from __future__ import annotations

from collections.abc import Iterator

Table = dict[str, tuple[int, ...]]


def flux() -> Table:
    """Flux.1 dev: 19 blocks of two streams, 38 of one."""
    width, wide, text, pooled, time = 3072, 12288, 4096, 768, 256
    found: Table = {"img_in": (width, 64), "txt_in": (width, text)}
    for name, size in (("time_in", time), ("guidance_in", time), ("vector_in", pooled)):
        found |= {f"{name}.in_layer": (width, size), f"{name}.out_layer": (width, width)}
    for block in range(19):
        for side in ("img", "txt"):
            head = f"double_blocks.{block}.{side}"
            found[f"{head}_mod.lin"] = (6 * width, width)
            found[f"{head}_attn.qkv"], found[f"{head}_attn.proj"] = (3 * width, width), (width, width)
            found[f"{head}_mlp.0"], found[f"{head}_mlp.2"] = (wide, width), (width, wide)
    for block in range(38):
        head = f"single_blocks.{block}"
        found[f"{head}.linear1"], found[f"{head}.linear2"] = (3 * width + wide, width), (width, width + wide)
        found[f"{head}.modulation.lin"] = (3 * width, width)
    return found | {"final_layer.linear": (64, width), "final_layer.adaLN_modulation.1": (2 * width, width)}


def wan() -> Table:
    """Wan 2.1 I2V 14B: 40 blocks, and what sees the first frame."""
    width, wide, text, time, seen = 5120, 13824, 4096, 256, 1280
    found: Table = {
        "patch_embedding": (width, 36, 1, 2, 2),
        "text_embedding.0": (width, text),
        "text_embedding.2": (width, width),
        "time_embedding.0": (width, time),
        "time_embedding.2": (width, width),
        "time_projection.1": (6 * width, width),
        "img_emb.proj.0": (seen,),
        "img_emb.proj.1": (seen, seen),
        "img_emb.proj.3": (width, seen),
        "img_emb.proj.4": (width,),
        "head.head": (64, width),
    }
    for block in range(40):
        head = f"blocks.{block}"
        for attention in ("self_attn", "cross_attn"):
            found |= {f"{head}.{attention}.{name}": (width, width) for name in "qkvo"}
            found |= {f"{head}.{attention}.norm_{name}": (width,) for name in "qk"}
        found |= {f"{head}.cross_attn.{name}_img": (width, width) for name in "kv"}
        found |= {f"{head}.cross_attn.norm_k_img": (width,), f"{head}.norm3": (width,)}
        found |= {f"{head}.ffn.0": (wide, width), f"{head}.ffn.2": (width, wide)}
    return found


def sdxl() -> Table:
    """Stable Diffusion XL's U-Net, in the names of its original code."""
    time, label = 1280, 2816
    found: Table = {
        "time_embed.0": (time, 320),
        "time_embed.2": (time, time),
        "label_emb.0.0": (time, label),
        "label_emb.0.2": (time, time),
        "input_blocks.0.0": (320, 4, 3, 3),
        "out.0": (320,),
        "out.2": (4, 320, 3, 3),
    }
    inputs = [(1, 320, 320, 0), (2, 320, 320, 0), (4, 320, 640, 2), (5, 640, 640, 2), (7, 640, 1280, 10)]
    for block, before, after, depth in (*inputs, (8, 1280, 1280, 10)):
        found |= dict(_block(f"input_blocks.{block}", before, after, depth))
    found |= {f"input_blocks.{block}.0.op": (width, width, 3, 3) for block, width in ((3, 320), (6, 640))}
    found |= dict(_resnet("middle_block.0", 1280, 1280)) | dict(_attention("middle_block.1", 1280, 10))
    found |= dict(_resnet("middle_block.2", 1280, 1280))
    outputs = [(2560, 1280, 10), (2560, 1280, 10), (1920, 1280, 10), (1920, 640, 2), (1280, 640, 2), (960, 640, 2)]
    for block, (before, after, depth) in enumerate([*outputs, (960, 320, 0), (640, 320, 0), (640, 320, 0)]):
        found |= dict(_block(f"output_blocks.{block}", before, after, depth))
    return found | {f"output_blocks.{block}.2.conv": (width, width, 3, 3) for block, width in ((2, 1280), (5, 640))}


def clip(layers: int, width: int, heads: bool) -> Table:
    """A text encoder of SDXL. heads: whether it projects what it says of a whole text."""
    found: Table = {"text_projection": (width, width)} if heads else {}
    for layer in range(layers):
        head = f"text_model.encoder.layers.{layer}"
        found |= {f"{head}.self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "out")}
        found |= {f"{head}.mlp.fc1": (4 * width, width), f"{head}.mlp.fc2": (width, 4 * width)}
    return found


def _block(head: str, before: int, after: int, depth: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from _resnet(f"{head}.0", before, after)
    if depth:
        yield from _attention(f"{head}.1", after, depth)


def _resnet(head: str, before: int, after: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{head}.in_layers.0", (before,)
    yield f"{head}.in_layers.2", (after, before, 3, 3)
    yield f"{head}.emb_layers.1", (after, 1280)
    yield f"{head}.out_layers.0", (after,)
    yield f"{head}.out_layers.3", (after, after, 3, 3)
    if before != after:
        yield f"{head}.skip_connection", (after, before, 1, 1)


def _attention(head: str, width: int, depth: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{head}.norm", (width,)
    yield f"{head}.proj_in", (width, width)
    yield f"{head}.proj_out", (width, width)
    for block in range(depth):
        inside = f"{head}.transformer_blocks.{block}"
        for attention, context in (("attn1", width), ("attn2", 2048)):
            yield f"{inside}.{attention}.to_q", (width, width)
            yield f"{inside}.{attention}.to_k", (width, context)
            yield f"{inside}.{attention}.to_v", (width, context)
            yield f"{inside}.{attention}.to_out.0", (width, width)
        yield f"{inside}.ff.net.0.proj", (8 * width, width)
        yield f"{inside}.ff.net.2", (width, 4 * width)
        for norm in ("norm1", "norm2", "norm3"):
            yield f"{inside}.{norm}", (width,)
