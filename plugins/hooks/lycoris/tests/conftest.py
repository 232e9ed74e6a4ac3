"""Denoisers of two real architectures, small and random, and how they are asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from torch import Tensor, nn

from st.model.files.peft_layout import diffusers_format
from st_lycoris import LycorisAdapter


class Upstream:
    """A denoiser class of diffusers: build() gives the same weights each time."""

    def __init__(self, build: Callable[[], nn.Module], inputs: dict[str, Any], targets: Sequence[str]) -> None:
        self._build, self.inputs, self.targets = build, inputs, tuple(targets)

    def build(self) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self._build().eval().requires_grad_(False)

    def ask(self, denoiser: nn.Module) -> Tensor:
        return denoiser(**self.inputs, return_dict=False)[0]

    def trained(self, adapter: LycorisAdapter, steps: int = 3) -> nn.Module:
        """A denoiser with this adapter that has learned something."""
        torch.manual_seed(1)
        denoiser = self.build()
        groups = adapter.attach(denoiser, self.targets, {"diffusers": diffusers_format("transformer")})
        self.train(denoiser, torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.0), steps)
        return denoiser

    def train(self, denoiser: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        denoiser.train()
        for step in range(steps):
            torch.manual_seed(100 + step)
            self.ask(denoiser).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        denoiser.eval()


def _flux() -> nn.Module:
    return FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=8,
        guidance_embeds=False,
        axes_dims_rope=(4, 6, 6),
    )


def _unet() -> nn.Module:
    return UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(1, 2),
        cross_attention_dim=12,
        use_linear_projection=True,
        norm_num_groups=4,
    )


def _drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


@pytest.fixture(scope="session")
def flux() -> Upstream:
    inputs = {
        "hidden_states": _drawn(2, 4, 16),
        "encoder_hidden_states": _drawn(2, 3, 12),
        "pooled_projections": _drawn(2, 8),
        "timestep": torch.tensor([0.2, 0.7]),
        "img_ids": torch.tensor([[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]),
        "txt_ids": torch.zeros(3, 3),
    }
    return Upstream(_flux, inputs, ("to_q", "add_k_proj", "to_out.0", "ff.net.0.proj", "proj_out", "proj_mlp"))


@pytest.fixture(scope="session")
def unet() -> Upstream:
    inputs = {
        "sample": _drawn(2, 4, 8, 8),
        "timestep": torch.tensor([200, 700]),
        "encoder_hidden_states": _drawn(2, 3, 12),
    }
    # Kernels of 3 and of 1, strided ones, and linear layers.
    targets = ("to_q", "to_out.0", "conv1", "conv_shortcut", "downsamplers.0.conv", "time_emb_proj", "conv_in")
    return Upstream(_unet, inputs, targets)
