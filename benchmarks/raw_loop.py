"""The floor of training: a hand-written PyTorch loop on the pocket model, with nothing around the mathematics.

It does in every step what a run of ``st`` does: rows out of memory, noise and times drawn row by row from seeded
generators, the forward pass, the weighted loss, the backward pass, clipping by norm, fused AdamW. It reads no settings,
writes nothing and tells nobody. It imports nothing of ``st``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import load_file
from settings import FLOOR, RANK, SHIFT, TARGETS
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Raw:
    """What the loop trains. cached: a safetensors file of ``latents``, ``words`` and ``pooled``, a row per picture."""

    cached: str
    checkpoint: str
    adapter: str = "full"
    precision: str = "fp32"
    batch: int = 8


def load_denoiser(raw: Raw) -> tuple[Any, list[Tensor]]:
    """The denoiser in training mode, and the weights that learn."""
    low = raw.precision == "bf16" and raw.adapter == "lora"
    dtype = torch.bfloat16 if low else torch.float32
    upstream: Any = SD3Transformer2DModel
    denoiser = upstream.from_pretrained(raw.checkpoint, torch_dtype=dtype, local_files_only=True)
    if raw.adapter == "lora":
        from peft import LoraConfig

        denoiser.requires_grad_(False)
        denoiser.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS))
        for weight in denoiser.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()
    return denoiser.train(), [weight for weight in denoiser.parameters() if weight.requires_grad]


def rows(total: int, batch: int) -> Iterator[Tensor]:
    """Which pictures each step takes: shuffled passes, for ever."""
    left = torch.empty(0, dtype=torch.int64)
    while True:
        if len(left) < batch:
            left = torch.cat([left, torch.randperm(total)])
        yield left[:batch]
        left = left[batch:]


def drawn(like: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Noise like the latents and shifted logit-normal times (B,), each row from a generator with a seed of its own."""
    noise, normal = torch.empty(like.shape), torch.empty(len(like))
    generator = torch.Generator()
    for place in range(len(like)):
        generator.manual_seed(42_000_000_000 + first + place)
        noise[place].normal_(generator=generator)
        normal[place].normal_(generator=generator)
    t = torch.sigmoid(normal)
    return noise, SHIFT * t / (1 + (SHIFT - 1) * t)


def loss_of(denoiser: Any, raw: Raw, batch: dict[str, Tensor], first: int) -> Tensor:
    """The scalar to differentiate."""
    clean = batch["latents"]
    noise, t = drawn(clean, first)
    time = t.reshape(-1, 1, 1, 1)
    x = (1 - time) * clean + time * noise
    dtype = next(denoiser.parameters()).dtype
    with torch.autocast("cpu", torch.bfloat16) if raw.precision == "bf16" else nullcontext():
        prediction = denoiser(
            hidden_states=x.to(dtype),
            timestep=t * 1000,
            encoder_hidden_states=batch["words"].to(dtype),
            pooled_projections=batch["pooled"].to(dtype),
            return_dict=False,
        )[0]
    error = (prediction.float() - clean) ** 2
    loss: Tensor = (error.flatten(1).mean(1) * t.clamp(min=FLOOR) ** -2).mean()
    return loss


def train(raw: Raw, steps: int) -> None:
    """Take optimizer steps."""
    data = load_file(raw.cached)
    denoiser, weights = load_denoiser(raw)
    optimizer = torch.optim.AdamW(weights, lr=1e-4, fused=True)
    chosen = rows(len(data["latents"]), raw.batch)
    for step in range(steps):
        picked = next(chosen)
        batch = {name: tensor[picked] for name, tensor in data.items()}
        torch.autograd.backward(loss_of(denoiser, raw, batch, step * raw.batch))
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
