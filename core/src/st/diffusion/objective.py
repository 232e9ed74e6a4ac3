"""Objective: what is asked of a denoiser in one step, and how the answer is scored."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from st.diffusion.density import AfterShift
from st.diffusion.layout import Layout, broadcast
from st.diffusion.noise import NoiseOptions, draw_noise, perturb
from st.diffusion.path import DiscretePath, Mix, determinant
from st.diffusion.shift import shift, unshifted
from st.diffusion.target import Particular, target_name
from st.errors import Problem
from st.options import Options

if TYPE_CHECKING:
    from torch import Tensor

    from st.diffusion.density import Density
    from st.diffusion.distance import Distance
    from st.diffusion.path import Path
    from st.diffusion.target import Target
    from st.diffusion.weighting import Weighting
    from st.randomness import Draws


@dataclass(frozen=True, slots=True)
class Batch:
    """The samples of one microbatch on one rank; all of one data set and one geometry.

    keys: (B,) names of the samples. indices: (B,) draw index of each, counted over the whole run and all ranks.
    latents: (B, C, [F,] H, W). conditions: what the text encoders gave, collated by the family. mask: (B, 1, H, W) in
    [0, 1], 1 where the loss counts; None where no sample has one. extras: further tensors by name, first dimension B:
    ``original_size`` (of the file), ``crop`` (in the resized picture) and ``target_size`` (B, 2) as (height, width) or
    (top, left) in pixels for pictures, and what references encode to. streams: of a family with several latents, all of
    them by name, ``latents`` being the first; empty where there is one. lacking: by stream, (B,) bool, which samples
    have none of it and zeros instead; a stream that all samples have is not there.
    """

    keys: tuple[str, ...]
    indices: tuple[int, ...]
    dataset: str
    latents: Tensor
    conditions: Mapping[str, Tensor]
    mask: Tensor | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    streams: Mapping[str, Tensor] = field(default_factory=dict)
    lacking: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def layout(self) -> Layout | None:
        """How several streams lie in the tensors of a ``Noised`` and in predictions; None of one stream."""
        return Layout.of(self.streams) if self.streams else None

    @property
    def clean(self) -> Tensor:
        """What is noised, float32: the latents, or all streams joined, (B, N)."""
        layout = self.layout
        return (self.latents if layout is None else layout.join(self.streams)).float()


@dataclass(frozen=True, slots=True)
class Noised:
    """Latents on their way to noise.

    t: 0 for clean, 1 for pure noise: (B,), or times of positions as ``layout.broadcast`` reads them. Where a position's
    time is 0 its latents are given: nothing is asked there and nothing counted. x, clean, noise: like latents, or
    several streams joined by ``Batch.layout``, (B, N); float32 whatever the latents' type. noise is what the target is
    made of: x may have seen more. told: further numbers that the denoiser is told, by name, (B,) or like t:
    ``target_time``, ``guidance``.
    """

    x: Tensor
    t: Tensor
    clean: Tensor
    noise: Tensor
    told: Mapping[str, Tensor] = field(default_factory=dict)

    def split(self, layout: Layout) -> dict[str, Noised]:
        """Each stream on its way to noise. What is told of positions stays joined."""
        times = layout.split_times(self.t)
        x, clean, noise = layout.split(self.x), layout.split(self.clean), layout.split(self.noise)
        return {name: Noised(x[name], times[name], clean[name], noise[name], self.told) for name in layout.shapes}


@dataclass(frozen=True, slots=True)
class Losses:
    """samples: (B,) weighted loss of each sample, float32. terms: further scalars by name, already weighted.

    learners: scalars that further learners learn from, by their names; the rest is the first's. steps: whether the
    first learner takes its step with these; False where a step is another's alone. All microbatches of a step, on all
    ranks, have losses of the same learners.
    streams: of several streams, the mean loss of each over the samples that have it, unweighted; to be shown.
    """

    samples: Tensor
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    learners: Mapping[str, Tensor] = field(default_factory=dict)
    steps: bool = True
    streams: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def total(self) -> Tensor:
        """The scalar that the first learner learns from: the samples' mean plus every term."""
        total = self.samples.mean()
        for term in self.terms.values():
            total = total + term
        return total

    def plus(self, name: str, term: Tensor) -> Losses:
        """The same losses with one more weighted scalar. A name is used once."""
        assert name not in self.terms, f"two techniques add a loss term named {name!r}"
        return replace(self, terms={**self.terms, name: term})

    def teaching(self, name: str, loss: Tensor) -> Losses:
        """The same losses with one of a further learner."""
        assert name not in self.learners, f"two techniques give a loss to the learner {name!r}"
        return replace(self, learners={**self.learners, name: loss})


class MaskOptions(Options):
    """How masks count, where samples have one."""

    normalise: bool = False
    """Whether the loss is divided by the share of a picture that its mask covers, so that small masks learn as fast."""


class StreamOptions(Options):
    """How the latents of one sample count, where a model makes several: a clip and its sound."""

    weight: Mapping[str, float] = Field(default_factory=dict)
    """By stream, what its loss is multiplied by; 1 where nothing is said. A sample trains the streams that it has."""

    @field_validator("weight")
    @classmethod
    def _weights_are_not_negative(cls, weight: Mapping[str, float]) -> Mapping[str, float]:
        for name, factor in weight.items():
            if not 0 <= factor < math.inf:
                raise ValueError(f"the weight of {name!r} is {factor}; it is 0 or more")
        return weight


def one_time(t: Tensor, batch: Batch, draws: Draws | None) -> Tensor:
    """Every position has the time of its sample."""
    return t


@dataclass(frozen=True, slots=True)
class Objective:
    """What is asked of a denoiser and how the answer is scored: the two ends of a training step.

    shift: from latents to k of the shift of times (``shift_rule``). positions: from the times of samples, (B,), to
    those of positions (``PlacesTimes``); without draws where nothing may be drawn. streams: how several streams count.
    samples_per_step: samples of one optimizer step
    over all ranks and microbatches. Nothing here waits for the device.
    """

    path: Path
    target: Target
    density: Density
    weighting: Weighting
    distance: Distance
    shift: Callable[[Tensor], float] = unshifted
    extra_noise: NoiseOptions = field(default_factory=NoiseOptions)
    mask: MaskOptions = field(default_factory=MaskOptions)
    positions: Callable[[Tensor, Batch, Draws | None], Tensor] = one_time
    streams: StreamOptions = field(default_factory=StreamOptions)
    samples_per_step: int = 1

    def problems(self) -> list[Problem]:
        """Choices that contradict each other. Needs no torch."""
        found = [self.extra_noise.problem(self.path), _unanswerable(self.path, self.target)]
        for strategy in (self.density, self.weighting, self.distance):
            if isinstance(strategy, Particular):
                found.append(strategy.problem(self.path, self.target))
        return [problem for problem in found if problem is not None]

    def times(self, latents: Tensor, draws: Draws) -> Tensor:
        """The times of samples, (B,) float32: drawn, shifted, and moved onto the path's table if it has one."""
        density = self.density.shifted_by(self.shift(latents)) if isinstance(self.density, AfterShift) else self.density
        t = density(draws)
        if density.shifted:
            t = shift(t, self.shift(latents))
        return self.path.snap(t) if isinstance(self.path, DiscretePath) else t

    def noise(self, batch: Batch, draws: Draws) -> Noised:
        """Mix noise into a batch. The same draws give the same result; row i depends on no other row."""
        clean = batch.clean
        t = self.positions(self.times(batch.latents, draws), batch, draws)
        noise = self._drawn(batch, clean, draws)
        seen = perturb(self.extra_noise, noise, draws, self.samples_per_step)
        return Noised(x=self.path(t).of(clean, seen), t=t, clean=clean, noise=noise)

    def loss(self, prediction: Tensor, noised: Noised, batch: Batch) -> Losses:
        """Score a prediction in the sense of ``target``: the mean over each sample's elements, weighted, in float32.

        Of several streams: the sum of their means, each with its weight, over those that the sample has.
        """
        # Shapes that merely broadcast would train something else without a word.
        wanted = noised.clean.shape
        assert prediction.shape == wanted, f"predicted {tuple(prediction.shape)} for {tuple(wanted)}"
        layout = batch.layout
        if layout is None:
            return Losses(self._score(prediction, noised, batch.mask))
        answers, total, shown = layout.split(prediction), noised.t.new_zeros(len(prediction)), {}
        for place, (name, one) in enumerate(noised.split(layout).items()):
            # A mask is drawn over the first stream: it says nothing of what is heard.
            score = self._score(answers[name], one, None if place else batch.mask)
            has = has_stream(batch, name, score)
            shown[name] = (score * has).sum() / has.sum().clamp(min=1)
            total = total + score * has * self.streams.weight.get(name, 1.0)
        return Losses(total, streams=shown)

    def _drawn(self, batch: Batch, clean: Tensor, draws: Draws) -> Tensor:
        """The noise of each stream, so that one stream's does not depend on what others there are."""
        layout = batch.layout
        if layout is None:
            return draw_noise(self.extra_noise, clean, draws)
        first, *others = layout.split(clean).items()
        drawn = {first[0]: draw_noise(self.extra_noise, first[1], draws)}
        return layout.join(drawn | {name: draws.normal(f"noise/{name}", like) for name, like in others})

    def _score(self, prediction: Tensor, noised: Noised, mask: Tensor | None) -> Tensor:
        """(B,) float32: one stream's weighted mean error."""
        t, mix = noised.t, self.path(noised.t)
        output = self.target(mix)
        error = self.distance(prediction.float(), output.of(noised.clean, noised.noise), t, self.path)
        asked = None if t.ndim == 1 else broadcast(t, error.shape) > 0
        if mask is not None:
            error = error * _usable_mask(mask, error, self.mask, asked)
        weight = self.weighting(mix, output, t)
        if asked is None:
            return error.flatten(1).mean(1) * weight
        return mean_where(error * broadcast(weight, error.shape), asked)


def has_stream(batch: Batch, name: str, like: Tensor) -> Tensor:
    """Which samples have a stream, (B,) in the type of ``like``: 1 or 0."""
    lacks = batch.lacking.get(name)
    return like.new_ones(len(batch.keys)) if lacks is None else (~lacks).to(like)


def mean_where(error: Tensor, asked: Tensor) -> Tensor:
    """(B,) the mean of each sample's elements where something was asked; 0 where nothing was. asked: broadcastable."""
    import torch

    everywhere = asked.expand_as(error).flatten(1)
    # Not a product: what is given may have an error that is not finite.
    return torch.where(everywhere, error.flatten(1), 0.0).sum(1) / everywhere.sum(1).clamp(min=1)


def _usable_mask(mask: Tensor, error: Tensor, options: MaskOptions, asked: Tensor | None) -> Tensor:
    """The factor of each element, float32, broadcastable to error (B, C, [F,] H, W). mask: (B, 1, H, W) in [0, 1]."""
    mask = mask.float()
    spread = mask.unsqueeze(2) if error.ndim == 5 else mask
    if not options.normalise:
        return spread
    covered = mask.flatten(1).mean(1) if asked is None else mean_where(spread.expand_as(error), asked)
    # Where a mask covers nothing the loss is 0 either way.
    return spread / covered.clamp(min=1e-6).reshape(-1, *[1] * (spread.ndim - 1))


def _unanswerable(path: Path, target: Target) -> Problem | None:
    """A noise prediction where x is pure noise already: the answer is x, and teaches nothing about pictures."""
    if not isinstance(path, DiscretePath) or path.alphas_cumprod[-1] > 0:
        return None
    pure_noise = Mix(0.0, 1.0)
    if determinant(pure_noise, target(pure_noise)) != 0:
        return None
    return Problem(
        "model",
        f"a schedule that ends in pure noise cannot be learnt with the target {target_name(target)!r}.",
        why="there the denoiser would be asked for the very noise that it is shown (arXiv:2305.08891)",
        fix="predict 'v', or leave the schedule as it is",
    )
