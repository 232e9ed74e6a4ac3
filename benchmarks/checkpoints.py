"""Checkpoints of flux and SDXL at the sizes that are measured: random weights, in the layout of the published ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

Changes = Mapping[str, Mapping[str, object]]
"""Settings by component, in place of those of the family's own tiny checkpoint."""


def write_checkpoint(family: str, size: str, directory: Path) -> None:
    """The family's tiny checkpoint, whose components are then made anew in another size. The same weights each time."""
    import torch

    family_class(family).tiny(directory)
    index = json.loads((directory / "model_index.json").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    for component, changes in SIZES[family][size].items():
        library, kind = index[component]
        _replace(directory / component, getattr(import_module(library), kind), changes)


def family_class(name: str) -> Any:
    """The class of a family's plugin."""
    from st_flux.family import Flux
    from st_sdxl.family import Sdxl

    return {"flux": Flux, "sdxl": Sdxl}[name]


def _replace(folder: Path, kind: Any, changes: Mapping[str, object]) -> None:
    if hasattr(kind, "load_config"):
        made = kind.from_config({**kind.load_config(folder), **changes})
    else:
        made = kind(kind.config_class.from_pretrained(folder, **changes))
    made.save_pretrained(folder)


def _autoencoder(*widths: int) -> Mapping[str, object]:
    return {"block_out_channels": widths, "norm_num_groups": 8, "sample_size": 256}


def _clip(width: int, layers: int = 2) -> Mapping[str, object]:
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_attention_heads": 4,
        "num_hidden_layers": layers,
        "projection_dim": width,
    }


def _flux(heads: int, blocks: tuple[int, int], text: tuple[int, int], latents: tuple[int, ...]) -> Changes:
    clip, t5 = text
    return {
        "transformer": {
            "num_layers": blocks[0],
            "num_single_layers": blocks[1],
            "attention_head_dim": 64,
            "num_attention_heads": heads,
            "joint_attention_dim": t5,
            "pooled_projection_dim": clip,
            "axes_dims_rope": (8, 28, 28),
        },
        "text_encoder": _clip(clip),
        "text_encoder_2": {"d_model": t5, "d_kv": t5 // 4, "d_ff": 2 * t5, "num_heads": 4},
        "vae": _autoencoder(*latents),
    }


def _sdxl(widths: tuple[int, ...], depths: tuple[int, ...], text: tuple[int, int], latents: tuple[int, ...]) -> Changes:
    first, second = text
    return {
        "unet": {
            "sample_size": 32,
            "block_out_channels": widths,
            "transformer_layers_per_block": depths,
            "attention_head_dim": tuple(width // 64 for width in widths),
            "cross_attention_dim": first + second,
            "addition_time_embed_dim": 32,
            "projection_class_embeddings_input_dim": second + 6 * 32,
            "norm_num_groups": 32,
        },
        "text_encoder": _clip(first, 3),
        "text_encoder_2": _clip(second, 3),
        "vae": _autoencoder(*latents),
    }


SIZES: Mapping[str, Mapping[str, Changes]] = {
    "flux": {
        "toy": {},
        "tiny": _flux(4, (2, 4), (64, 128), (16, 32, 32, 32)),
        "small": _flux(12, (3, 6), (256, 512), (32, 64, 64, 64)),
    },
    "sdxl": {
        "toy": {},
        "tiny": _sdxl((64, 128, 256), (1, 1, 2), (64, 64), (16, 32, 32, 32)),
        "small": _sdxl((128, 256, 512), (1, 2, 6), (192, 320), (32, 64, 64, 64)),
    },
}
"""toy only runs. A step of tiny is short, so that what a program adds shows; one of small is all mathematics. The
denoisers have 9 and 121 million weights in flux, 32 and 266 million in SDXL."""
