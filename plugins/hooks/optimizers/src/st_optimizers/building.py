"""Building: from options and parameter groups to the optimizers of other packages, imported when they are built."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

from st import Problem, StError

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from st_optimizers.options import (
        AdamW8bitOptions,
        Lion8bitOptions,
        LionOptions,
        MuonOptions,
        PagedAdamWOptions,
        ProdigyOptions,
        ScheduleFreeOptions,
        SoapOptions,
        StableAdamWOptions,
    )

    ParamGroup = dict[str, Any]

PAGED = frozenset({"paged_adamw", "paged_adamw8bit", "paged_lion8bit"})
"""Optimizers whose state lies in CUDA's unified memory."""

NEAREST = PAGED | {"adamw8bit", "lion8bit", "prodigy", "adamw_schedulefree", "muon", "soap"}
"""Optimizers that round new weights to the nearest number of their dtype: in bf16 small updates would be lost."""

SUMMED = frozenset({"lion", "stable_adamw"})
"""Optimizers that add up what rounding took from their steps (Kahan); from weight decay they do not."""

LOST = 2**-9
"""A smaller share of a bf16 number, taken away from it, rounds back to the same number."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an optimizer cannot train what it is given. where: the place in the run file that it is about."""

    where: str
    what: str
    why: str
    fix: str

    def problem(self) -> Problem:
        """For the checks before a run."""
        return Problem(self.where, self.what, self.why, self.fix)

    def error(self) -> StError:
        """For what is known only when weights are there."""
        return StError(self.what, why=self.why, fix=self.fix)


def rounded(kind: str, dtype: str) -> Refusal:
    """Weights of a dtype in which small updates are lost."""
    return Refusal(
        "adapter.dtype",
        f"optimizer.kind = {kind!r} does not train weights that are kept in {dtype}",
        "it rounds each new weight to the nearest, which loses updates smaller than 1/256 of it",
        "set adapter.dtype to 'fp32', or optimizer.kind to 'lion', 'stable_adamw' or 'adamw_bf16'",
    )


def undecayed(kind: str, dtype: str, options: LionOptions | StableAdamWOptions) -> Refusal | None:
    """Weight decay that rounding would undo on weights of this dtype; None where there is none."""
    if dtype != "bf16" or not 0 < options.lr * options.weight_decay < LOST:
        return None
    return Refusal(
        "optimizer.weight_decay",
        f"optimizer.weight_decay = {options.weight_decay!r} has no effect on weights that are kept in bf16",
        f"{kind!r} takes lr times weight_decay of each weight away, less than 1/512, which rounds to no change",
        "set optimizer.weight_decay to 0, or adapter.dtype to 'fp32'",
    )


def paged_on(kind: str, device: str) -> Refusal:
    """A device without unified memory."""
    return Refusal(
        "optimizer.kind",
        f"optimizer.kind = {kind!r} cannot be used on device {device!r}",
        "it moves its state between the memories of a CUDA device and of the computer",
        f"set optimizer.kind to {'adamw' if kind == 'paged_adamw' else kind.removeprefix('paged_')!r}",
    )


def build_adamw8bit(groups: Sequence[ParamGroup], options: AdamW8bitOptions) -> Optimizer:
    """bitsandbytes' AdamW8bit."""
    _check("adamw8bit", groups)
    from bitsandbytes.optim.adamw import AdamW8bit

    made: Optimizer = AdamW8bit(list(groups), **_adamw(options), min_8bit_size=options.min_8bit_size)  # type: ignore[no-untyped-call]
    return made


def build_paged_adamw(groups: Sequence[ParamGroup], options: PagedAdamWOptions) -> Optimizer:
    """bitsandbytes' PagedAdamW32bit, whose restored state is paged again."""
    _check("paged_adamw", groups)
    from st_optimizers.paged import PagedAdamW

    return PagedAdamW(list(groups), **_adamw(options))  # type: ignore[no-untyped-call]


def build_paged_adamw8bit(groups: Sequence[ParamGroup], options: AdamW8bitOptions) -> Optimizer:
    """bitsandbytes' PagedAdamW8bit, whose restored state is paged again."""
    _check("paged_adamw8bit", groups)
    from st_optimizers.paged import PagedAdamW8bit

    return PagedAdamW8bit(list(groups), **_adamw(options), min_8bit_size=options.min_8bit_size)  # type: ignore[no-untyped-call]


def build_lion(groups: Sequence[ParamGroup], options: LionOptions) -> Optimizer:
    """optimi's Lion; bf16 weights are summed up with what rounding took away (Kahan)."""
    _check_decay("lion", groups, options)
    from optimi import Lion  # type: ignore[import-untyped]

    made: Optimizer = Lion(list(groups), **_lion(options))
    return made


def build_lion8bit(groups: Sequence[ParamGroup], options: Lion8bitOptions) -> Optimizer:
    """bitsandbytes' Lion8bit."""
    _check("lion8bit", groups)
    from bitsandbytes.optim.lion import Lion8bit

    made: Optimizer = Lion8bit(list(groups), **_lion(options), min_8bit_size=options.min_8bit_size)  # type: ignore[no-untyped-call]
    return made


def build_paged_lion8bit(groups: Sequence[ParamGroup], options: Lion8bitOptions) -> Optimizer:
    """bitsandbytes' PagedLion8bit, whose restored state is paged again."""
    _check("paged_lion8bit", groups)
    from st_optimizers.paged import PagedLion8bit

    return PagedLion8bit(list(groups), **_lion(options), min_8bit_size=options.min_8bit_size)  # type: ignore[no-untyped-call]


def build_stable_adamw(groups: Sequence[ParamGroup], options: StableAdamWOptions) -> Optimizer:
    """optimi's StableAdamW; bf16 weights are summed up with what rounding took away (Kahan)."""
    _check_decay("stable_adamw", groups, options)
    from optimi import StableAdamW

    made: Optimizer = StableAdamW(
        list(groups),
        lr=options.lr,
        betas=(options.beta1, options.beta2),
        eps=options.epsilon,
        weight_decay=options.weight_decay,
    )
    return made


def build_prodigy(groups: Sequence[ParamGroup], options: ProdigyOptions) -> Optimizer:
    """prodigyopt's Prodigy, with decoupled weight decay. Raises StError for a group with a learning rate of its own."""
    _check("prodigy", groups)
    for group in groups:
        if group.get("lr", options.lr) != options.lr:
            raise StError(
                f"optimizer.kind = 'prodigy' cannot train {_name(group)!r} with a learning rate of its own",
                why="it finds one step size for everything that is trained",
                fix="take its plugin out of plugins, or set optimizer.kind to 'stable_adamw'",
            )
    from st_optimizers.reporting import ReportingProdigy

    # It prints that its weight decay is decoupled.
    with redirect_stdout(StringIO()):
        return ReportingProdigy(
            list(groups),
            lr=options.lr,
            betas=(options.beta1, options.beta2),
            beta3=options.beta3 or None,
            eps=options.epsilon,
            weight_decay=options.weight_decay,
            decouple=True,
            use_bias_correction=options.use_bias_correction,
            safeguard_warmup=options.safeguard_warmup,
            d0=options.d0,
            d_coef=options.d_coef,
            growth_rate=options.growth_rate or float("inf"),
            slice_p=options.slice_p,
        )


def build_schedule_free(groups: Sequence[ParamGroup], options: ScheduleFreeOptions) -> Optimizer:
    """schedulefree's AdamWScheduleFree in training mode; a warm-up is the schedule's."""
    _check("adamw_schedulefree", groups)
    from st_optimizers.schedule_free import ScheduleFreeAdamW

    optimizer = ScheduleFreeAdamW(
        list(groups),
        lr=options.lr,
        betas=(options.beta1, options.beta2),
        eps=options.epsilon,
        weight_decay=options.weight_decay,
        r=options.r,
        weight_lr_power=options.weight_lr_power,
    )
    optimizer.train()
    return optimizer


def build_muon(groups: Sequence[ParamGroup], options: MuonOptions) -> Optimizer:
    """pytorch-optimizer's Muon. Raises StError where there is no matrix to train."""
    _check("muon", groups)
    split = list(_split(groups, options.adamw_lr))
    if not any(group["use_muon"] for group in split):
        raise StError(
            "optimizer.kind = 'muon': none of what is trained is a matrix",
            why="it would train everything with AdamW",
            fix="set optimizer.kind to 'adamw'",
        )
    from pytorch_optimizer import Muon

    made: Optimizer = Muon(
        split,
        lr=options.lr,
        momentum=options.momentum,
        nesterov=options.nesterov,
        weight_decay=options.weight_decay,
        ns_steps=options.ns_steps,
        use_adjusted_lr=options.adjusted_lr,
        adamw_lr=options.adamw_lr,
        adamw_betas=(options.adamw_beta1, options.adamw_beta2),
        adamw_eps=options.adamw_epsilon,
        adamw_wd=options.adamw_weight_decay,
    )
    return made


def build_soap(groups: Sequence[ParamGroup], options: SoapOptions) -> Optimizer:
    """pytorch-optimizer's SOAP, whose state is laid out as it is restored. Its first step only begins the state."""
    _check("soap", groups)
    from st_optimizers.soap import RestorableSoap

    return RestorableSoap(
        list(groups),
        lr=options.lr,
        betas=(options.beta1, options.beta2),
        eps=options.epsilon,
        weight_decay=options.weight_decay,
        precondition_frequency=options.every,
        max_precondition_dim=options.max_dimension,
        precondition_1d=options.precondition_vectors,
        normalize_gradient=options.normalize == "rms",
    )


def _adamw(options: PagedAdamWOptions) -> dict[str, Any]:
    return {
        "lr": options.lr,
        "betas": (options.beta1, options.beta2),
        "eps": options.epsilon,
        "weight_decay": options.weight_decay,
    }


def _lion(options: LionOptions) -> dict[str, Any]:
    return {"lr": options.lr, "betas": (options.beta1, options.beta2), "weight_decay": options.weight_decay}


def _check(kind: str, groups: Sequence[ParamGroup]) -> None:
    """Raises StError for weights that the optimizer would not train as it should."""
    import torch

    for parameter in (p for group in groups for p in group["params"]):
        if kind in PAGED and parameter.device.type != "cuda":
            raise paged_on(kind, str(parameter.device)).error()
        if parameter.dtype in (torch.bfloat16, torch.float16):
            raise rounded(kind, "bf16" if parameter.dtype == torch.bfloat16 else "fp16").error()


def _check_decay(kind: str, groups: Sequence[ParamGroup], options: LionOptions | StableAdamWOptions) -> None:
    import torch

    in_bf16 = any(p.dtype == torch.bfloat16 for group in groups for p in group["params"])
    if in_bf16 and (refusal := undecayed(kind, "bf16", options)):
        raise refusal.error()


def _split(groups: Sequence[ParamGroup], adamw_lr: float) -> Sequence[ParamGroup]:
    """Each group as its matrices and the rest. A learning rate of a group's own was chosen for AdamW, which gets it."""
    split: list[ParamGroup] = []
    for group in groups:
        matrices = [p for p in group["params"] if p.ndim >= 2 and "lr" not in group]
        others = [p for p in group["params"] if p.ndim < 2 or "lr" in group]
        if matrices:
            split.append({**group, "params": matrices, "name": _name(group), "use_muon": True})
        if others:
            name = f"{_name(group)} (AdamW)"
            split.append({**group, "params": others, "name": name, "use_muon": False, "lr": group.get("lr", adamw_lr)})
    return split


def _name(group: ParamGroup) -> str:
    return str(group.get("name", "weights"))
