"""What a denoiser is asked to predict, as a mix of clean latents and noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

from st.diffusion.path import Mix

if TYPE_CHECKING:
    from st.diffusion.path import Path
    from st.errors import Problem


class Target(Protocol):
    """From the mix that a denoiser sees to the mix that it predicts. A plain function; its name is used in messages."""

    def __call__(self, x: Mix, /) -> Mix: ...


def velocity(x: Mix) -> Mix:
    """noise - clean: where a straight path leads. Liu et al. 2022, arXiv:2209.03003."""
    return Mix(-1.0, 1.0)


def dataward_velocity(x: Mix) -> Mix:
    """clean - noise: the velocity of families that count time from noise to clean."""
    return Mix(1.0, -1.0)


def epsilon(x: Mix) -> Mix:
    """The noise. Ho et al. 2020, arXiv:2006.11239."""
    return Mix(0.0, 1.0)


def v(x: Mix) -> Mix:
    """The derivative along a circular path. Salimans and Ho 2022, arXiv:2202.00512, appendix D."""
    return Mix(-x.noise, x.clean)


def clean(x: Mix) -> Mix:
    """The clean latents."""
    return Mix(1.0, 0.0)


def target_name(target: Target) -> str:
    """What a target is called in messages."""
    return str(getattr(target, "__name__", type(target).__name__))


@runtime_checkable
class Particular(Protocol):
    """A strategy that is right for some paths and targets only; it says so before anything is loaded."""

    def problem(self, path: Path, target: Target) -> Problem | None:
        """Why this strategy cannot be used with them, or None. Must not import torch."""
        ...
