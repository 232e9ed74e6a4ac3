"""The built-in optimizers, by the names that run files use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pydantic import Field

from st.options import Options

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from torch.optim import Optimizer

    from st.registrar import Registrar

    ParamGroup = dict[str, Any]


@runtime_checkable
class Measured(Protocol):
    """An optimizer with numbers of its own to show, such as a step size that it finds by itself."""

    def metrics(self) -> Mapping[str, float]:
        """Numbers by name; each becomes the metric ``optimizer/NAME``.

        Asked only when the report reads the device, after the last step of a reading.
        """
        ...


@runtime_checkable
class HasEvaluationMode(Protocol):
    """An optimizer that computes gradients at other weights than those that are meant to be used.

    A run is validated, evaluated and exported with the weights that are meant to be used. Its checkpoints hold both.
    """

    def evaluating(self) -> AbstractContextManager[None]:
        """The weights to use in the model for the length of a ``with``; the trained ones return bit for bit."""
        ...


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
    register.optimizer("adamw", build_adamw, AdamWOptions, elementwise=True)
    register.optimizer("adamw_bf16", build_adamw_bf16, AdamWOptions)
    register.optimizer("sgd", build_sgd, SgdOptions, elementwise=True)
    register.optimizer("adafactor", build_adafactor, AdafactorOptions)


def build_adamw(groups: Sequence[ParamGroup], options: AdamWOptions) -> Optimizer:
    """torch's AdamW: fused where the device has it, else over lists of tensors."""
    import torch

    return torch.optim.AdamW(
        list(groups),
        lr=options.lr,
        betas=(options.beta1, options.beta2),
        eps=options.epsilon,
        weight_decay=options.weight_decay,
        fused=_can_fuse(groups),
    )


def build_adamw_bf16(groups: Sequence[ParamGroup], options: AdamWOptions) -> Optimizer:
    """AdamW whose weights and state are bfloat16, rounded stochastically."""
    from st.train.adamw_bf16 import AdamWBf16

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
