"""The built-in optimizers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from st.options import Options
from st.train.updates.optimizer import OPTIMIZER
from st.train.updates.rounding import refuse_rounded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.optim import Optimizer

    from st.registrar import Registrar

    ParamGroup = dict[str, Any]


class AdamWOptions(Options):
    """Adam with decoupled weight decay. Loshchilov & Hutter 2017, arXiv:1711.05101."""

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


class SgdOptions(Options):
    """Stochastic gradient descent with momentum."""

    lr: float = Field(1e-2, gt=0)
    """Learning rate at the top of the schedule."""
    momentum: float = Field(0.0, ge=0, lt=1)
    """Decay of the running sum of gradients; 0 keeps none."""
    nesterov: bool = False
    """Look ahead along the momentum."""
    weight_decay: float = Field(0.0, ge=0)
    """L2 penalty added to the gradient."""


class AdafactorOptions(Options):
    """Adam with a factored second moment: nearly no state. Shazeer & Stern 2018, arXiv:1804.04235."""

    lr: float = Field(1e-3, gt=0)
    """Learning rate at the top of the schedule; also the largest relative step."""
    beta2_decay: float = Field(-0.8, lt=0)
    """Exponent with which the second moment's memory grows."""
    clip: float = Field(1.0, gt=0)
    """Largest root mean square of one update."""
    weight_decay: float = Field(0.0, ge=0)
    """Fraction of each weight taken away per step, times the learning rate."""


def register(register: Registrar) -> None:
    """Add the built-in optimizers."""
    register.add(OPTIMIZER, "adamw", build_adamw, AdamWOptions, traits=("elementwise",))
    register.add(OPTIMIZER, "adamw_bf16", build_adamw_bf16, AdamWOptions)
    register.add(OPTIMIZER, "sgd", build_sgd, SgdOptions, traits=("elementwise",))
    register.add(OPTIMIZER, "adafactor", build_adafactor, AdafactorOptions)


def build_adamw(groups: Sequence[ParamGroup], options: AdamWOptions) -> Optimizer:
    """torch's AdamW: fused where the device has it, else over lists of tensors."""
    import torch

    refuse_rounded("adamw", groups)

    return torch.optim.AdamW(
        list(groups),
        lr=options.lr,
        betas=(options.beta1, options.beta2),
        eps=options.epsilon,
        weight_decay=options.weight_decay,
        fused=_can_fuse(groups),
    )


def build_adamw_bf16(groups: Sequence[ParamGroup], options: AdamWOptions) -> Optimizer:
    """AdamW over bfloat16 weights, whose state is bfloat16 too, rounded stochastically; others are exact."""
    from st.train.updates.adamw_bf16 import AdamWBf16

    refuse_rounded("adamw_bf16", groups)
    return AdamWBf16(
        list(groups),
        lr=options.lr,
        betas=(options.beta1, options.beta2),
        epsilon=options.epsilon,
        weight_decay=options.weight_decay,
    )


def build_sgd(groups: Sequence[ParamGroup], options: SgdOptions) -> Optimizer:
    """torch's SGD."""
    import torch

    refuse_rounded("sgd", groups)

    return torch.optim.SGD(
        list(groups),
        lr=options.lr,
        momentum=options.momentum,
        nesterov=options.nesterov,
        weight_decay=options.weight_decay,
        fused=_can_fuse(groups),
    )


def build_adafactor(groups: Sequence[ParamGroup], options: AdafactorOptions) -> Optimizer:
    """torch's Adafactor."""
    import torch

    refuse_rounded("adafactor", groups)

    return torch.optim.Adafactor(
        list(groups),
        lr=options.lr,
        beta2_decay=options.beta2_decay,
        d=options.clip,
        weight_decay=options.weight_decay,
        foreach=True,
    )


def _can_fuse(groups: Sequence[ParamGroup]) -> bool:
    """Fused kernels take floating-point parameters of one dtype on a CPU, CUDA, MPS or XPU device."""
    parameters = [parameter for group in groups for parameter in group["params"]]
    return all(p.is_floating_point() and p.device.type in {"cpu", "cuda", "mps", "xpu"} for p in parameters)
