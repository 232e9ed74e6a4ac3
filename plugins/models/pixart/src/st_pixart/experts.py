"""Experts: two denoisers that draw a picture together, each the times of its stage."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Experts(nn.Module):
    """What a pipeline asks in place of one denoiser. Every sample of a call has the same time.

    border: the index of the first time that the noisy one draws; the clean one draws those before it.
    """

    def __init__(self, noisy: nn.Module, clean: nn.Module, border: float) -> None:
        super().__init__()
        self.noisy, self.clean, self.border = noisy, clean, border
        one: Any = noisy
        self.config = one.config

    @property
    def dtype(self) -> torch.dtype:
        """The type that both compute in, as pipelines ask for it."""
        return next(one for one in self.parameters() if one.is_floating_point()).dtype

    @property
    def device(self) -> torch.device:
        """Where both are, as pipelines ask for it."""
        return next(self.parameters()).device

    def forward(self, *args: Any, **keywords: Any) -> Any:
        """The answer of the expert whose time it is."""
        expert = self.noisy if float(keywords["timestep"].flatten()[0]) >= self.border else self.clean
        return expert(*args, **keywords)
