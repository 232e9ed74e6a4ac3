"""Optimizers: which optimizers there are, and which settings do not go with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

import st
from st import Problem, hookimpl
from st.settings.together import kept_in
from st_optimizers import building
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

if TYPE_CHECKING:
    from st.settings.config import RunConfig

SMALLEST_PRODIGY_LR = 0.1
"""A smaller one was meant for another optimizer: Prodigy multiplies the step size that it finds with it."""


class Optimizers:
    """Adds optimizers that a run file chooses by name."""

    Options: ClassVar[type[st.Options]] = st.Options

    def __init__(self, options: st.Options) -> None:
        self.options = options

    @hookimpl
    def st_register(self, register: st.Registrar) -> None:
        """Every name; what builds it imports its package."""
        register.add(st.OPTIMIZER, "adamw8bit", building.build_adamw8bit, AdamW8bitOptions)
        register.add(st.OPTIMIZER, "paged_adamw", building.build_paged_adamw, PagedAdamWOptions)
        register.add(st.OPTIMIZER, "paged_adamw8bit", building.build_paged_adamw8bit, AdamW8bitOptions)
        register.add(st.OPTIMIZER, "lion", building.build_lion, LionOptions, traits=("elementwise",))
        register.add(st.OPTIMIZER, "lion8bit", building.build_lion8bit, Lion8bitOptions)
        register.add(st.OPTIMIZER, "paged_lion8bit", building.build_paged_lion8bit, Lion8bitOptions)
        register.add(st.OPTIMIZER, "stable_adamw", building.build_stable_adamw, StableAdamWOptions)
        register.add(st.OPTIMIZER, "prodigy", building.build_prodigy, ProdigyOptions)
        register.add(st.OPTIMIZER, "adamw_schedulefree", building.build_schedule_free, ScheduleFreeOptions)
        register.add(st.OPTIMIZER, "muon", building.build_muon, MuonOptions)
        register.add(st.OPTIMIZER, "soap", building.build_soap, SoapOptions)

    @hookimpl
    def st_check(self, config: RunConfig) -> Iterator[Problem]:
        """What would train badly, or not at all, before anything is loaded."""
        kind, options = config.optimizer.kind, config.optimizer.options
        if isinstance(options, ScheduleFreeOptions):
            yield from _schedule_free_problems(config)
        if isinstance(options, ProdigyOptions):
            yield from _prodigy_problems(config, options)
        if kind in building.PAGED and config.device == "cpu":
            yield building.paged_on(kind, "cpu").problem()
        dtype = kept_in(config)
        if kind in building.NEAREST and dtype != "fp32":
            yield building.rounded(kind, dtype).problem()
        if kind in building.SUMMED and isinstance(options, LionOptions | StableAdamWOptions):
            undecayed = building.undecayed(kind, dtype, options)
            yield from [undecayed.problem()] if undecayed else []


def _schedule_free_problems(config: RunConfig) -> Iterator[Problem]:
    if config.schedule.kind != "constant":
        what = f"schedule.kind = {config.schedule.kind!r} does not go with optimizer.kind = {config.optimizer.kind!r}"
        why = "it averages weights instead of letting the rate fall, and would give late steps too little weight"
        yield Problem("schedule.kind", what, why, 'set schedule.kind to "constant"; schedule.warmup may be set')
    if config.average is not None:
        what = f"[average] does not go with optimizer.kind = {config.optimizer.kind!r}"
        yield Problem("average", what, "what it trains is an average already, which is exported", "leave [average] out")


def _prodigy_problems(config: RunConfig, options: ProdigyOptions) -> Iterator[Problem]:
    from st.train.updates.schedules import ConstantOptions

    if options.lr < SMALLEST_PRODIGY_LR:
        what = f"optimizer.lr = {options.lr!r} does not go with optimizer.kind = {config.optimizer.kind!r}"
        why = "it finds the step size by itself and multiplies it by lr, so next to nothing would be learnt"
        yield Problem("optimizer.lr", what, why, "leave optimizer.lr at 1; optimizer.d_coef = 0.5 makes smaller steps")
    schedule = config.schedule.options
    if not options.safeguard_warmup and isinstance(schedule, ConstantOptions) and schedule.warmup:
        what = f"schedule.warmup = {schedule.warmup} does not go with optimizer.safeguard_warmup = false"
        why = "the small rates of the warm-up would make the step size that is found too large"
        yield Problem("schedule.warmup", what, why, "leave optimizer.safeguard_warmup at true, or set warmup to 0")
