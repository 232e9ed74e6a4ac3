"""Integrates a prediction from noise to clean latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

from st.diffusion.layout import broadcast
from st.diffusion.path import DiscretePath, unmix
from st.diffusion.shift import shift
from st.registrar import StrategyKind

if TYPE_CHECKING:
    from typing import Any

    from torch import Tensor

    from st.diffusion.path import Path
    from st.diffusion.target import Target

    Predict = Callable[[Tensor, Tensor], Tensor]
    """(x, t) to a prediction like x; x (B, ...), t (B,) in (0, 1], or what ``positions`` makes of it."""
    Combine = Callable[[Tensor, Tensor, float], Tensor]
    """(the wanted prediction, the negative one, the strength of guidance) to the guided one, all like the first."""
    Read = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """(x, t) to the clean latents and the noise that x is believed to be made of."""


SAMPLER: StrategyKind[Callable[[Any], Sampler]] = StrategyKind("sampler")
"""``[validation] sampler``: how noise is integrated to a sample."""


class Sampler(Protocol):
    """One step from t to ``following``, which is less; both (B,), or of positions. ends: whether ``following`` is 0."""

    def __call__(self, read: Read, path: Path, x: Tensor, times: tuple[Tensor, Tensor], ends: bool) -> Tensor: ...


def euler(read: Read, path: Path, x: Tensor, times: tuple[Tensor, Tensor], ends: bool) -> Tensor:
    """Euler on a straight path, DDIM on a noise schedule (Song et al. 2020, arXiv:2010.02502)."""
    t, following = times
    return path(following).of(*read(x, t))


def sample(
    predict: Predict,
    path: Path,
    target: Target,
    noise: Tensor,
    times: Sequence[float],
    *,
    sampler: Sampler = euler,
    positions: Callable[[Tensor], Tensor] | None = None,
    on_step: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """Integrate a prediction from noise to clean latents, like noise.

    noise: (B, ...) float32, standard normal. times: falling, the first usually 1 and the last 0. positions: from times
    (B,) to those of positions; where these are 0, ``noise`` holds what is given there, and it stays. on_step: told
    after each step how many are done. Gradients flow unless the caller switches them off.
    """

    import torch

    def read(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        here = path(t)
        return unmix(x, here, predict(x, t).float(), target(here))

    x = noise
    for done, (time, next_time) in enumerate(pairwise(times), start=1):
        t, then = _place(path, x, time), _place(path, x, next_time)
        if positions is not None:
            t, then = positions(t), positions(then)
        moved = sampler(read, path, x, (t, then), next_time == 0)
        # What is given is never computed: where x says nothing about the noise, reading it would not be finite.
        x = moved if positions is None else torch.where(broadcast(t, x.shape) == 0, x, moved)
        on_step(done)
    return x


def _place(path: Path, x: Tensor, time: float) -> Tensor:
    """A time as (B,) on x's device; of the path's table where it has one."""
    t = x.new_full((len(x),), time)
    return path.nearest(t) if isinstance(path, DiscretePath) else t


def times(steps: int, k: float = 1.0) -> tuple[float, ...]:
    """steps + 1 times from 1 to 0, evenly spread and then shifted by the k that training used; else the two disagree.

    On a table this is "trailing" spacing, the one that starts from pure noise (arXiv:2305.08891, section 3.3).
    """
    return tuple(shift(1 - step / steps, k) for step in range(steps + 1))


def following(t: Tensor, times: Sequence[float], path: Path) -> Tensor:
    """The time that sampling goes to from t, like t; 0 stays 0. times: falling, as ``sample`` takes them.

    For denoisers that are told it, as flow maps are.
    """
    import torch

    rising = torch.tensor(sorted(times), dtype=t.dtype).to(t.device)
    if isinstance(path, DiscretePath):
        rising = path.nearest(rising)
    # Float32 may return a time some roundings away from where it was put.
    place = torch.searchsorted(rising, (t - 1e-6).contiguous()) - 1
    return rising[place.clamp(min=0)]


def guided(
    predict: Predict, negative: Predict, scale: float, rescale: float = 0.0, *, combine: Combine | None = None
) -> Predict:
    """Classifier-free guidance by two predictions. Ho and Salimans 2022, arXiv:2207.12598.

    scale: 1 is ``predict`` alone. rescale: how much of each sample's contrast is brought back to that of ``predict``,
    in [0, 1]. combine: a family's own way to guide, in place of both.
    """
    if combine is not None:
        return lambda x, t: combine(predict(x, t), negative(x, t), scale)

    def both(x: Tensor, t: Tensor) -> Tensor:
        return _combine(predict(x, t), negative(x, t), scale, rescale)

    return both


def guided_together(predict: Predict, scale: float, rescale: float = 0.0) -> Predict:
    """Classifier-free guidance by one prediction of 2 B rows: the wanted ones first, then the negative ones."""

    def both(x: Tensor, t: Tensor) -> Tensor:
        wanted, negative = predict(x.repeat(2, *[1] * (x.ndim - 1)), t.repeat(2, *[1] * (t.ndim - 1))).chunk(2)
        return _combine(wanted, negative, scale, rescale)

    return both


def _combine(wanted: Tensor, negative: Tensor, scale: float, rescale: float) -> Tensor:
    combined = negative + scale * (wanted - negative)
    if not rescale:
        return combined
    dims = tuple(range(1, wanted.ndim))
    # Lin et al. 2023, arXiv:2305.08891, section 3.4.
    contrast = wanted.std(dims, keepdim=True) / combined.std(dims, keepdim=True)
    return combined * (rescale * contrast + 1 - rescale)
