"""The built-in samplers: one step of an integration from noise to a sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from st.diffusion.path import Mix
from st.diffusion.sampler import SAMPLER, euler
from st.options import Options

if TYPE_CHECKING:
    from torch import Tensor

    from st.diffusion.path import Path
    from st.registrar import Registrar

    Predict = Callable[[Tensor, Tensor], Tensor]
    """(x, t) to a prediction like x; x (B, ...), t (B,) in (0, 1]."""
    Read = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """(x, t) to the clean latents and the noise that x is believed to be made of."""


def heun(read: Read, path: Path, x: Tensor, times: tuple[Tensor, Tensor], ends: bool) -> Tensor:
    """Heun's second-order method; two predictions for each step but the last. Karras et al. 2022, arXiv:2206.00364."""
    t, following = times
    here, there = path(t), path(following)
    clean, noise = read(x, t)
    predicted = there.of(clean, noise)
    if ends:
        return predicted
    clean_there, noise_there = read(predicted, following)
    step = Mix(there.clean - here.clean, there.noise - here.noise)
    return x + step.of((clean + clean_there) / 2, (noise + noise_there) / 2)


class SamplerOptions(Options):
    """A sampler without settings."""


def register(register: Registrar) -> None:
    """Add the built-in samplers."""
    register.add(SAMPLER, "euler", lambda options: euler, SamplerOptions)
    register.add(SAMPLER, "heun", lambda options: heun, SamplerOptions)
