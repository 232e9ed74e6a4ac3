"""What a run file says of DeepSpeed, and what it may not say beside it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

import st
from st import Options, Problem, hookimpl

if TYPE_CHECKING:
    import torch

    from st import Registrar, Run
    from st.settings.config import RunConfig
    from st.train.ranks.ranks import Ranks, RanksOptions

STAGES = {"zero2": 2, "zero3": 3}


class DeepSpeedOptions(Options):
    """How much of a run lies beside the device, for the engines `zero2` and `zero3`."""

    offload: Literal["none", "optimizer", "all"] = "none"
    """What lies in memory of the host: nothing, the optimizer's state and step, or with `zero3` also the weights."""
    bucket: int = Field(50_000_000, ge=1)
    """Weights whose gradients are sent in one message. More is faster and takes more memory."""


class DeepSpeed:
    """The engines `zero2` and `zero3` of [ranks].

    Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models", arXiv:1910.02054.
    """

    Options: ClassVar[type[DeepSpeedOptions]] = DeepSpeedOptions

    def __init__(self, options: DeepSpeedOptions) -> None:
        self.options = options

    @hookimpl
    def st_register(self, register: Registrar) -> None:
        for name, stage in STAGES.items():
            register.add(st.ENGINE, name, partial(self._build, stage), Options, traits=("splits",))

    @hookimpl
    def st_check(self, config: RunConfig) -> Iterable[Problem]:
        """What ZeRO does not do, beside what no engine does that splits weights."""
        engine = config.ranks.engine
        if engine not in STAGES:
            return
        if config.clip.value:
            what = f"clip.value does not go with ranks.engine = {engine!r}, which clips by the norm alone."
            yield Problem("clip.value", what, fix="Set clip.value to 0 and clip.norm instead.")
        if engine == "zero3" and config.compile.blocks:
            what = "compile.blocks does not go with ranks.engine = 'zero3', which fetches weights inside of blocks."
            yield Problem("compile.blocks", what, fix='Set compile.blocks to false, or ranks.engine to "fsdp".')
        if engine == "zero2" and self.options.offload == "all":
            what = "deepspeed.offload = 'all' needs ranks.engine = 'zero3': zero2 keeps whole weights on the device."
            yield Problem("deepspeed.offload", what, fix='Set it to "optimizer", or ranks.engine to "zero3".')

    @hookimpl
    def st_denoiser_loaded(self, run: Run) -> None:
        if run.config.ranks.engine not in STAGES:
            run.report.note(f"[deepspeed] has no effect: ranks.engine = {run.config.ranks.engine!r}", kind="deepspeed")

    def _build(self, stage: int, device: torch.device, options: RanksOptions) -> Ranks:
        from st_deepspeed.engine import build_engine

        return build_engine(stage, device, options, self.options)
