"""The built-in learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import Field

from st.options import Options
from st.train.updates.schedule import SCHEDULE, Rate, Schedule

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from st.registrar import Registrar


class ConstantOptions(Options):
    """The same rate throughout, after a linear warm-up."""

    warmup: int = Field(0, ge=0)
    """Optimizer steps over which the rate rises linearly from 0."""


class LinearOptions(ConstantOptions):
    """Falls in a straight line to the end rate at the last step."""

    end: float = Field(0.0, ge=0)
    """Rate at the last step."""


class CosineOptions(ConstantOptions):
    """Falls along half a cosine to the end rate, once or several times. Loshchilov & Hutter 2016, arXiv:1608.03983."""

    end: float = Field(0.0, ge=0)
    """Rate at the bottom of each cycle."""
    cycles: int = Field(1, ge=1)
    """How many times the rate falls; it restarts at the top."""


class PolynomialOptions(ConstantOptions):
    """Falls to the end rate as (1 - progress) ** power."""

    end: float = Field(0.0, ge=0)
    """Rate at the last step."""
    power: float = Field(1.0, gt=0)
    """Exponent; above 1 the rate falls early, below 1 late."""


class SineOptions(ConstantOptions):
    """Swings between the top and the end rate."""

    end: float = Field(0.0, ge=0)
    """Rate at the bottom of the swing."""
    period: int = Field(100, ge=1)
    """Steps over which the sine's argument grows by pi."""


def register(register: Registrar) -> None:
    """Add the built-in schedules."""
    register.add(SCHEDULE, "constant", _builder(constant), ConstantOptions)
    register.add(SCHEDULE, "linear", _builder(linear), LinearOptions)
    register.add(SCHEDULE, "cosine", _builder(cosine), CosineOptions)
    register.add(SCHEDULE, "polynomial", _builder(polynomial), PolynomialOptions)
    register.add(SCHEDULE, "sine", _builder(sine), SineOptions)


def constant(options: ConstantOptions, total: int) -> Rate:
    """lr0 min(1, s / warmup)."""
    return lambda step, top: top * _warmed(step, options.warmup)


def linear(options: LinearOptions, total: int) -> Rate:
    """Warm-up, then lr0 + (end - lr0) (s - w) / (total - w)."""
    return _after_warmup(options, total, lambda done, top: top + (options.end - top) * done)


def cosine(options: CosineOptions, total: int) -> Rate:
    """Warm-up, then end + (lr0 - end) (1 + cos(pi p)) / 2, p the progress through the current cycle."""

    def rate(done: float, top: float) -> float:
        within = done * options.cycles % 1.0 if done < 1 else 1.0
        return options.end + (top - options.end) * (1 + math.cos(math.pi * within)) / 2

    return _after_warmup(options, total, rate)


def polynomial(options: PolynomialOptions, total: int) -> Rate:
    """Warm-up, then (lr0 - end) (1 - (s - w) / (total - w)) ** power + end."""
    return _after_warmup(
        options, total, lambda done, top: (top - options.end) * (1 - done) ** options.power + options.end
    )


def sine(options: SineOptions, total: int) -> Rate:
    """end + (lr0 - end) (1 + sin(pi s / period)) / 2, times the warm-up."""

    def rate(step: int, top: float) -> float:
        swing = (1 + math.sin(math.pi * step / options.period)) / 2
        return (options.end + (top - options.end) * swing) * _warmed(step, options.warmup)

    return rate


def _builder(formula: Callable[[Any, int], Rate]) -> Callable[[Optimizer, Any, int], Schedule]:
    def build(optimizer: Optimizer, options: Any, total: int) -> Schedule:
        return Schedule(optimizer, formula(options, total))

    return build


def _warmed(step: int, warmup: int) -> float:
    return min(1.0, step / warmup) if warmup else 1.0


def _after_warmup(options: ConstantOptions, total: int, rate: Callable[[float, float], float]) -> Rate:
    """A warm-up, then ``rate(progress in [0, 1], top)`` over the steps that remain."""

    def combined(step: int, top: float) -> float:
        if step < options.warmup:
            return top * step / options.warmup
        done = (step - options.warmup) / max(total - options.warmup, 1)
        return rate(min(done, 1.0), top)

    return combined
