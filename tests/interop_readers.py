"""What programs make of an adapter file's tensors, written from their published formulas and not from ours.

Each function gives the change of a layer's weight, (out, in, *kernel), from the parts that lie beside the layer in a
file. ComfyUI applies every kind; kohya's tools and musubi-tuner apply products in the same way, diffusers at the scale
that the file's header tells.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Parts = Mapping[str, Tensor]


def comfyui(parts: Parts, weight: Tensor) -> Tensor:
    """The change that ComfyUI makes at strength 1; of kinds without a magnitude, which it norms in its own way."""
    flat = weight.flatten(1)
    for marks, change in (
        (("lora_A.weight", "lora_down.weight"), _products),
        (("hada_w1_a",), _hadamard),
        (("lokr_w1", "lokr_w1_a"), _kronecker),
        (("a1.weight",), _beside),
        (("oft_blocks",), _rotation),
    ):
        if any(mark in parts for mark in marks):
            return change(parts, flat).reshape(weight.shape)
    return parts["diff"].reshape(weight.shape)


def diffusers(parts: Parts, weight: Tensor) -> Tensor:
    """The change at a scale of 1: what the weights themselves say."""
    assert "alpha" not in parts
    return comfyui(parts, weight)


def _scale(parts: Parts, rank: int) -> float:
    return float(parts["alpha"]) / rank if "alpha" in parts else 1.0


def _products(parts: Parts, weight: Tensor) -> Tensor:
    down = parts.get("lora_A.weight", parts.get("lora_down.weight"))
    up = parts.get("lora_B.weight", parts.get("lora_up.weight"))
    assert down is not None and up is not None
    return _scale(parts, len(down)) * up.flatten(1) @ down.flatten(1)


def _hadamard(parts: Parts, weight: Tensor) -> Tensor:
    halves = [parts[f"hada_w{n}_a"] @ parts[f"hada_w{n}_b"] for n in (1, 2)]
    return halves[0] * halves[1] * _scale(parts, len(parts["hada_w1_b"]))


def _kronecker(parts: Parts, weight: Tensor) -> Tensor:
    ranks = [len(parts[f"lokr_w{n}_b"]) for n in (1, 2) if f"lokr_w{n}_b" in parts]
    factors = [
        parts[f"lokr_w{n}"] if f"lokr_w{n}" in parts else parts[f"lokr_w{n}_a"] @ parts[f"lokr_w{n}_b"] for n in (1, 2)
    ]
    return torch.kron(factors[0], factors[1].flatten(1)) * (_scale(parts, ranks[-1]) if ranks else 1.0)


def _beside(parts: Parts, weight: Tensor) -> Tensor:
    first, second, third, fourth = (parts[f"{name}.weight"] for name in ("a1", "a2", "b1", "b2"))
    return (third @ fourth + weight @ first @ second) * _scale(parts, len(second))


def _rotation(parts: Parts, weight: Tensor) -> Tensor:
    """Blocks of rotations of the outputs; with butterflies, one step after the other on outputs in another order."""
    steps = parts["oft_blocks"] if parts["oft_blocks"].ndim == 4 else parts["oft_blocks"][None]
    limit, turned = float(parts["alpha"]), weight
    skew = steps - steps.transpose(-1, -2)
    if limit > 0 and skew.norm() > limit:
        skew = skew * limit / skew.norm()
    one = torch.eye(skew.shape[-1])
    turns = (one + skew) @ torch.linalg.inv(one - skew)
    if parts["oft_blocks"].ndim == 3:
        return torch.block_diag(*turns[0]).T @ weight - weight
    half = skew.shape[-1] // 2
    for step, blocks in enumerate(turns):
        places = torch.arange(len(weight)).reshape(-1, 2, 2**step * half).transpose(1, 2).flatten()
        again = torch.empty_like(turned)
        again[places] = torch.block_diag(*blocks) @ turned[places]
        turned = again
    return turned - weight
