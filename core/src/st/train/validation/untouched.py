"""Asking a denoiser in the middle of training without leaving a trace."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch
    from torch import nn


@contextmanager
def untouched(denoiser: nn.Module, device: torch.device) -> Iterator[None]:
    """Eval mode and no gradients inside; each module's mode and all global random numbers are put back after."""
    import random

    import numpy
    import torch

    modes = [(module, module.training) for module in denoiser.modules()]
    python, arrays = random.getstate(), numpy.random.get_state()
    here = [] if device.type in {"cpu", "meta"} else [device]
    denoiser.eval()
    try:
        # no_grad, not inference_mode: what a module keeps from here (a rotary table) is used in training later.
        with torch.random.fork_rng(here, device_type=here[0].type if here else "cuda"), torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        random.setstate(python)
        numpy.random.set_state(arrays)
