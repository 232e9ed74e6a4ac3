"""The floor of training flux and SDXL: a hand-written PyTorch loop around diffusers' denoiser and peft's LoRA.

It does in every step what a run of ``st`` does: rows out of memory, noise and times drawn row by row from seeded
generators, the forward pass, the loss, the backward pass, clipping by norm, fused AdamW. It reads no settings, writes
nothing and tells nobody. It imports nothing of ``st``.
"""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from family_settings import RANK, TARGETS
from raw_loop import rows
from safetensors.torch import load_file
from torch import Tensor

Rows = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Raw:
    """What the loop trains. cached: a safetensors file of latents and conditions, a row per picture."""

    family: str
    cached: str
    checkpoint: str
    precision: str
    batch: int = 1

    @property
    def dtype(self) -> torch.dtype:
        """Of the frozen weights. What learns is float32."""
        return torch.bfloat16 if self.precision == "bf16" else torch.float32


def load_denoiser(raw: Raw) -> tuple[Any, list[Tensor]]:
    """The denoiser in training mode, and the weights that learn."""
    from peft import LoraConfig

    upstream: Any = FluxTransformer2DModel if raw.family == "flux" else UNet2DConditionModel
    folder = "transformer" if raw.family == "flux" else "unet"
    denoiser = upstream.from_pretrained(raw.checkpoint, subfolder=folder, torch_dtype=raw.dtype, local_files_only=True)
    denoiser.requires_grad_(False)
    denoiser.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(TARGETS[raw.family])))
    weights = [weight for weight in denoiser.parameters() if weight.requires_grad]
    for weight in weights:
        weight.data = weight.data.float()
    return denoiser.train(), weights


def drawn(like: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Noise like the latents and normal numbers (B,), each row from a generator with a seed of its own."""
    noise, normal = torch.empty(like.shape), torch.empty(len(like))
    generator = torch.Generator()
    for place in range(len(like)):
        generator.manual_seed(42_000_000_000 + first + place)
        noise[place].normal_(generator=generator)
        normal[place].normal_(generator=generator)
    return noise, normal


class FluxLoss:
    """Velocity at shifted logit-normal times, as the published model was trained."""

    def __init__(self, raw: Raw) -> None:
        self.dtype = raw.dtype

    def __call__(self, denoiser: Any, batch: Rows, first: int) -> tuple[Tensor, Tensor]:
        """(prediction, what it should be)."""
        clean = batch["latents"].float()
        noise, normal = drawn(clean, first)
        count, channels, height, width = clean.shape
        tokens = height * width // 4
        shift = math.exp(0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256))
        t = torch.sigmoid(normal)
        t = shift * t / (1 + (shift - 1) * t)
        time = t.reshape(-1, 1, 1, 1)
        x = (1 - time) * clean + time * noise
        squares = x.view(count, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
        text = batch["prompt_embeds"].to(self.dtype)
        places = torch.zeros(height // 2, width // 2, 3)
        places[..., 1] += torch.arange(height // 2)[:, None]
        places[..., 2] += torch.arange(width // 2)
        prediction = denoiser(
            hidden_states=squares.reshape(count, tokens, channels * 4).to(self.dtype),
            encoder_hidden_states=text,
            pooled_projections=batch["pooled_prompt_embeds"].to(self.dtype),
            timestep=t,
            guidance=torch.ones(count),
            img_ids=places.reshape(-1, 3),
            txt_ids=torch.zeros(text.shape[1], 3),
            return_dict=False,
        )[0]
        squares = prediction.view(count, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return squares.reshape(clean.shape), noise - clean


class SdxlLoss:
    """The noise, at times of the discrete schedule."""

    def __init__(self, raw: Raw) -> None:
        self.dtype = raw.dtype
        settings = json.loads((Path(raw.checkpoint) / "scheduler" / "scheduler_config.json").read_text("utf-8"))
        betas = torch.linspace(settings["beta_start"] ** 0.5, settings["beta_end"] ** 0.5, 1000) ** 2
        self.table = torch.cumprod(1 - betas, 0)

    def __call__(self, denoiser: Any, batch: Rows, first: int) -> tuple[Tensor, Tensor]:
        """(prediction, what it should be)."""
        clean = batch["latents"].float()
        noise, normal = drawn(clean, first)
        index = (torch.special.ndtr(normal) * 1000).long().clamp(max=999)
        kept = self.table[index].reshape(-1, 1, 1, 1)
        x = kept.sqrt() * clean + (1 - kept).sqrt() * noise
        edge = 8 * clean.shape[-1]
        told = torch.tensor([[edge, edge, 0, 0, edge, edge]], dtype=torch.float32).expand(len(clean), -1)
        prediction = denoiser(
            x.to(self.dtype),
            index,
            encoder_hidden_states=batch["prompt_embeds"].to(self.dtype),
            added_cond_kwargs={"text_embeds": batch["pooled_prompt_embeds"].to(self.dtype), "time_ids": told},
            return_dict=False,
        )[0]
        return prediction, noise


def train(raw: Raw, steps: int) -> None:
    """Take optimizer steps."""
    data = load_file(raw.cached)
    denoiser, weights = load_denoiser(raw)
    optimizer = torch.optim.AdamW(weights, lr=1e-4, fused=True)
    ask = FluxLoss(raw) if raw.family == "flux" else SdxlLoss(raw)
    chosen = rows(len(data["latents"]), raw.batch)
    for step in range(steps):
        picked = next(chosen)
        batch = {name: tensor[picked] for name, tensor in data.items()}
        with torch.autocast("cpu", torch.bfloat16) if raw.precision == "bf16" else nullcontext():
            prediction, wanted = ask(denoiser, batch, step * raw.batch)
        torch.autograd.backward(((prediction.float() - wanted) ** 2).mean())
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
