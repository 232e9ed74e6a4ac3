"""Objective: what is asked of a denoiser in one step, and how the answer is scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from st.diffusion.density import AfterShift
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
    (top, left) in pixels for pictures, and what references encode to.
    """

    keys: tuple[str, ...]
    indices: tuple[int, ...]
    dataset: str
    latents: Tensor
    conditions: Mapping[str, Tensor]
    mask: Tensor | None = None
    extras: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Noised:
    """Latents on their way to noise. t: (B,), 0 for clean, 1 for pure noise.

    x, clean, noise: like latents, float32 whatever the latents' type. noise is what the target is made of: x may have
    seen more.
    """

    x: Tensor
    t: Tensor
    clean: Tensor
    noise: Tensor


@dataclass(frozen=True, slots=True)
class Losses:
    """samples: (B,) weighted loss of each sample, float32. terms: further scalars by name, already weighted.

    learners: scalars that further learners learn from, by their names; the rest is the first's. steps: whether the
    first learner takes its step with these; False where a step is another's alone. All microbatches of a step, on all
    ranks, have losses of the same learners.
    """

    samples: Tensor
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    learners: Mapping[str, Tensor] = field(default_factory=dict)
    steps: bool = True

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


@dataclass(frozen=True, slots=True)
class Objective:
    """What is asked of a denoiser and how the answer is scored: the two ends of a training step.

    shift: from latents to k of the shift of times (``shift_rule``). samples_per_step: samples of one optimizer step
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
    samples_per_step: int = 1

    def problems(self) -> list[Problem]:
        """Choices that contradict each other. Needs no torch."""
        found = [self.extra_noise.problem(self.path), _unanswerable(self.path, self.target)]
        for strategy in (self.density, self.weighting, self.distance):
            if isinstance(strategy, Particular):
                found.append(strategy.problem(self.path, self.target))
        return [problem for problem in found if problem is not None]

    def times(self, latents: Tensor, draws: Draws) -> Tensor:
        """The times of a batch, (B,) float32: drawn, shifted, and moved onto the path's table if it has one."""
        density = self.density.shifted_by(self.shift(latents)) if isinstance(self.density, AfterShift) else self.density
        t = density(draws)
        if density.shifted:
            t = shift(t, self.shift(latents))
        return self.path.snap(t) if isinstance(self.path, DiscretePath) else t

    def noise(self, batch: Batch, draws: Draws) -> Noised:
        """Mix noise into a batch. The same draws give the same result; row i depends on no other row."""
        clean = batch.latents.float()
        t = self.times(batch.latents, draws)
        noise = draw_noise(self.extra_noise, clean, draws)
        seen = perturb(self.extra_noise, noise, draws, self.samples_per_step)
        return Noised(x=self.path(t).of(clean, seen), t=t, clean=clean, noise=noise)

    def loss(self, prediction: Tensor, noised: Noised, batch: Batch) -> Losses:
        """Score a prediction in the sense of ``target``: the mean over each sample's elements, weighted, in float32."""
        mix = self.path(noised.t)
        output = self.target(mix)
        wanted = output.of(noised.clean, noised.noise)
        # Shapes that merely broadcast would train something else without a word.
        assert prediction.shape == wanted.shape, f"predicted {tuple(prediction.shape)} for {tuple(wanted.shape)}"
        error = self.distance(prediction.float(), wanted, noised.t, self.path)
        if batch.mask is not None:
            error = error * _usable_mask(batch.mask, error, self.mask)
        return Losses(error.flatten(1).mean(1) * self.weighting(mix, output, noised.t))


def _usable_mask(mask: Tensor, error: Tensor, options: MaskOptions) -> Tensor:
    """The factor of each element, float32, broadcastable to error (B, C, [F,] H, W). mask: (B, 1, H, W) in [0, 1]."""
    mask = mask.float()
    if options.normalise:
        # Where a mask covers nothing the loss is 0 either way.
        mask = mask / mask.flatten(1).mean(1).clamp(min=1e-6).reshape(-1, 1, 1, 1)
    return mask.unsqueeze(2) if error.ndim == 5 else mask


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
