"""What can be set for each optimizer; defaults are those that its authors advise for training diffusion models."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from st import Options


class PagedAdamWOptions(Options):
    """AdamW whose state moves to the computer's memory when the device's is full. Dettmers et al., arXiv:2305.14314."""

    lr: float = Field(1e-4, gt=0)
    """Learning rate at the top of the schedule."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the gradient's running mean."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """Decay of the squared gradient's running mean."""
    epsilon: float = Field(1e-8, gt=0)
    """Added to the denominator."""
    weight_decay: float = Field(0.01, ge=0)
    """Fraction of each weight taken away per step, times the learning rate."""


class AdamW8bitOptions(PagedAdamWOptions):
    """AdamW with a state of two bytes a weight instead of eight. Dettmers et al. 2021, arXiv:2110.02861."""

    min_8bit_size: int = Field(4096, ge=1)
    """Tensors of fewer weights keep their state in 32 bits."""


class LionOptions(Options):
    """Steps of one size along the sign of the momentum; half the state of AdamW. Chen et al. 2023, arXiv:2302.06675."""

    lr: float = Field(2e-5, gt=0)
    """Learning rate at the top of the schedule; a third to a tenth of what AdamW would take."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """How much of the momentum, instead of the gradient, the direction of a step is made of."""
    beta2: float = Field(0.99, ge=0, lt=1)
    """Decay of the momentum."""
    weight_decay: float = Field(0.05, ge=0)
    """Fraction of each weight taken away per step, times the learning rate; three to ten times that of AdamW."""


class Lion8bitOptions(LionOptions):
    """Lion with a state of one byte a weight instead of four."""

    min_8bit_size: int = Field(4096, ge=1)
    """Tensors of fewer weights keep their state in 32 bits."""


class StableAdamWOptions(Options):
    """AdamW that shortens a step where its second moment lags behind. Wortsman et al. 2023, arXiv:2304.13013."""

    lr: float = Field(1e-4, gt=0)
    """Learning rate at the top of the schedule."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the gradient's running mean."""
    beta2: float = Field(0.99, ge=0, lt=1)
    """Decay of the squared gradient's running mean."""
    epsilon: float = Field(1e-6, gt=0)
    """Added to the denominator."""
    weight_decay: float = Field(0.01, ge=0)
    """Fraction of each weight taken away per step, times the learning rate."""


class ProdigyOptions(Options):
    """AdamW that finds its step size by itself. Mishchenko & Defazio 2023, arXiv:2306.06101."""

    lr: float = Field(1.0, gt=0)
    """Multiplies the step size that was found; 1 unless training is unstable."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the gradient's running mean."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """Decay of the squared gradient's running mean."""
    beta3: float = Field(0.0, ge=0, lt=1)
    """Decay of the sums that the step size is estimated from; 0 takes the square root of beta2."""
    epsilon: float = Field(1e-8, gt=0)
    """Added to the denominator, times the step size."""
    weight_decay: float = Field(0.01, ge=0)
    """Fraction of each weight taken away per step, times the learning rate and the step size."""
    d0: float = Field(1e-6, gt=0)
    """Step size to begin with; a small one only takes longer to grow."""
    d_coef: float = Field(1.0, gt=0)
    """Multiplies the estimate of the step size; 0.5 and 2 are what to try."""
    growth_rate: float = Field(0.0, ge=0)
    """Largest factor by which the step size grows in a step, such as 1.02; 0 sets no limit."""
    use_bias_correction: bool = True
    """Divide out that the running means begin at zero, as AdamW does."""
    safeguard_warmup: bool = True
    """Leave the schedule's rate out of the estimate, so that a warm-up does not inflate the step size."""
    slice_p: int = Field(1, ge=1)
    """Estimate from every n-th weight only, which saves memory: the state is 2 + 2/n floats a weight."""


class ScheduleFreeOptions(Options):
    """AdamW with an average of the weights instead of a falling rate. Defazio et al. 2024, arXiv:2405.15682."""

    lr: float = Field(5e-4, gt=0)
    """Learning rate; up to ten times what AdamW would take."""
    beta1: float = Field(0.9, gt=0, lt=1)
    """How close to the average, instead of the latest weights, gradients are computed."""
    beta2: float = Field(0.999, ge=0, lt=1)
    """Decay of the squared gradient's running mean."""
    epsilon: float = Field(1e-8, gt=0)
    """Added to the denominator."""
    weight_decay: float = Field(0.0, ge=0)
    """Fraction of each weight taken away per step, times the learning rate."""
    r: float = Field(0.0, ge=0)
    """Later steps weigh more in the average, as their number to this power."""
    weight_lr_power: float = Field(2.0, ge=0)
    """Steps of a warm-up weigh less in the average, as their learning rate to this power."""


class MuonOptions(Options):
    """Steps whose singular values are all about one, for matrices; AdamW for the rest. Jordan et al. 2024."""

    lr: float = Field(0.02, gt=0)
    """Learning rate of matrices at the top of the schedule."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """Decay of the gradient's running mean."""
    nesterov: bool = True
    """Look ahead along the momentum."""
    weight_decay: float = Field(0.0, ge=0)
    """Fraction of each weight of a matrix taken away per step, times the learning rate."""
    ns_steps: int = Field(5, ge=1)
    """Newton-Schulz iterations that even out the singular values."""
    adjusted_lr: bool = False
    """Scale a step by 0.2 sqrt(larger side), so that lr and weight_decay are those of AdamW (arXiv:2502.16982), instead
    of by sqrt(rows / columns) where there are more rows than columns."""
    adamw_lr: float = Field(3e-4, gt=0)
    """Learning rate of everything that is no matrix, at the top of the schedule."""
    adamw_beta1: float = Field(0.9, ge=0, lt=1)
    """Decay of the gradient's running mean, for what is no matrix."""
    adamw_beta2: float = Field(0.95, ge=0, lt=1)
    """Decay of the squared gradient's running mean, for what is no matrix."""
    adamw_epsilon: float = Field(1e-10, gt=0)
    """Added to the denominator, for what is no matrix."""
    adamw_weight_decay: float = Field(0.0, ge=0)
    """Fraction of each weight taken away per step, times adamw_lr, for what is no matrix."""


class SoapOptions(Options):
    """Adam in the coordinates in which gradients are least correlated. Vyas et al. 2024, arXiv:2409.11321."""

    lr: float = Field(3e-3, gt=0)
    """Learning rate at the top of the schedule."""
    beta1: float = Field(0.95, ge=0, lt=1)
    """Decay of the gradient's running mean."""
    beta2: float = Field(0.95, ge=0, lt=1)
    """Decay of the squared gradient's running mean, and of the gradient's covariance."""
    epsilon: float = Field(1e-8, gt=0)
    """Added to the denominator."""
    weight_decay: float = Field(0.01, ge=0)
    """Fraction of each weight taken away per step, times the learning rate."""
    every: int = Field(10, ge=1)
    """Steps between two updates of the coordinates."""
    max_dimension: int = Field(10000, ge=1)
    """Longer sides of a matrix keep their coordinates; each other side of n takes 2 n * n floats."""
    precondition_vectors: bool = False
    """Change the coordinates of biases and the like, too."""
    normalize: Literal["none", "rms"] = "none"
    """Scale each tensor's step to a root mean square of one (rms), or not."""
