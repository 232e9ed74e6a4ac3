"""How noise is mixed into clean latents as t goes from 0 (clean) to 1 (pure noise)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from operator import mul
from typing import TYPE_CHECKING, Protocol, Self

from st.diffusion.layout import broadcast

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Mix:
    """The combination ``clean * x0 + noise * eps``; coefficients are numbers, or tensors like the times."""

    clean: Tensor | float
    noise: Tensor | float

    def of(self, clean: Tensor, noise: Tensor) -> Tensor:
        """Mix latents (B, C, ...); coefficients of samples or of positions, as ``layout.broadcast`` reads them."""
        return _spread(self.clean, clean) * clean + _spread(self.noise, noise) * noise


def _spread(coefficient: Tensor | float, like: Tensor) -> Tensor | float:
    if isinstance(coefficient, (int, float)) or coefficient.ndim == 0:
        return coefficient
    return broadcast(coefficient, like.shape)


def determinant(input: Mix, output: Mix) -> Tensor | float:
    """How well two mixes tell clean and noise apart: 0 where they are the same mix up to a factor."""
    return input.clean * output.noise - input.noise * output.clean


def unmix(x: Tensor, input: Mix, y: Tensor, output: Mix) -> tuple[Tensor, Tensor]:
    """Solve ``x = input.of(clean, noise)`` and ``y = output.of(clean, noise)`` for (clean, noise), each like x.

    Not finite where the determinant is 0: a noise prediction of pure noise says nothing about the clean latents.
    """
    scale = 1 / determinant(input, output)
    clean = Mix(output.noise * scale, -(input.noise * scale)).of(x, y)
    noise = Mix(-(output.clean * scale), input.clean * scale).of(x, y)
    return clean, noise


class Path(Protocol):
    """From times to a mix with coefficients like them. t: (B,) in [0, 1], or times of positions."""

    def __call__(self, t: Tensor) -> Mix: ...


def straight(t: Tensor) -> Mix:
    """Rectified flow: x = (1 - t) x0 + t eps. Liu et al. 2022, arXiv:2209.03003."""
    return Mix(1 - t, t)


@dataclass(frozen=True, slots=True)
class DiscretePath:
    """A table of T training times: x = sqrt(a) x0 + sqrt(1 - a) eps. Ho et al. 2020, arXiv:2006.11239.

    alphas_cumprod: a of the indices 0 (nearly clean) to T - 1. Index i is the time ``(i + 1) / T``, so that t = 0 is
    exactly clean and t = 1 is the last index. A path is plain numbers until it is called: a family may build one when
    it is imported.
    """

    alphas_cumprod: tuple[float, ...]
    _tables: dict[torch.device, tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def of_betas(cls, betas: Sequence[float]) -> Self:
        """The path whose step i adds noise of variance ``betas[i]``."""
        return cls(tuple(accumulate((1 - beta for beta in betas), mul)))

    @property
    def steps(self) -> int:
        """T."""
        return len(self.alphas_cumprod)

    def __call__(self, t: Tensor) -> Mix:
        rows = self.index(t) + 1
        clean, noise = self._table(t.device)
        return Mix(clean[rows], noise[rows])

    def index(self, t: Tensor) -> Tensor:
        """The table's index closest to t, like it, int64 in [-1, T), for denoisers that are told one; -1 is clean."""
        return (t * self.steps).round().long() - 1

    def nearest(self, t: Tensor) -> Tensor:
        """The closest time of the table, for sampling."""
        return (self.index(t) + 1) / self.steps

    def snap(self, t: Tensor) -> Tensor:
        """The first time of the table that is not before t, for training: times spread evenly give even indices.

        0 stays 0.
        """
        # Float32 may return a time of the table two roundings late, and it must not move to the next index.
        steps = (t * self.steps * (1 - 2**-22)).ceil().clamp(max=self.steps)
        return steps / self.steps

    def _table(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(clean, noise) coefficients of t = 0 and every index, (T + 1,) float32; one copy to the device per run."""
        if device not in self._tables:
            import torch

            kept = torch.tensor([1.0, *self.alphas_cumprod], dtype=torch.float64)
            tables = kept.sqrt().float(), (1 - kept).sqrt().float()
            self._tables[device] = (tables[0].to(device), tables[1].to(device))
        return self._tables[device]


def linear_betas(start: float, end: float, steps: int = 1000) -> tuple[float, ...]:
    """Betas evenly spread from start to end."""
    return tuple(start + (end - start) * index / (steps - 1) for index in range(steps))


def scaled_linear_betas(start: float, end: float, steps: int = 1000) -> tuple[float, ...]:
    """Betas whose square roots are evenly spread: latent diffusion's. Rombach et al. 2022, arXiv:2112.10752."""
    return tuple(root**2 for root in linear_betas(math.sqrt(start), math.sqrt(end), steps))


def cosine_betas(steps: int = 1000, ceiling: float = 0.999) -> tuple[float, ...]:
    """Betas of a squared-cosine schedule, at most ``ceiling``. Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 17."""

    def kept(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    return tuple(min(1 - kept((index + 1) / steps) / kept(index / steps), ceiling) for index in range(steps))


def zero_terminal_snr(alphas_cumprod: Sequence[float]) -> tuple[float, ...]:
    """The table rescaled so that its last time is pure noise and its first is unchanged.

    Lin et al. 2023, arXiv:2305.08891, algorithm 1. A noise prediction says nothing there: it needs ``v`` or ``clean``.
    """
    roots = [math.sqrt(kept) for kept in alphas_cumprod]
    first, last = roots[0], roots[-1]
    return tuple(((root - last) * first / (first - last)) ** 2 for root in roots)
