"""The engines that come with the core."""

from __future__ import annotations

from typing import TYPE_CHECKING

from st.train.ranks.ranks import ENGINE, Ranks, RanksOptions, Single

if TYPE_CHECKING:
    import torch

    from st.registrar import Registrar


def register(register: Registrar) -> None:
    """Add the built-in engines."""
    register.add(ENGINE, "single", build_single, RanksOptions)
    register.add(ENGINE, "ddp", build_ddp, RanksOptions)
    register.add(ENGINE, "fsdp", build_fsdp, RanksOptions, traits=("splits",))


def build_single(device: torch.device, options: RanksOptions) -> Ranks:
    """The engine of one process."""
    return Single(device)


def build_ddp(device: torch.device, options: RanksOptions) -> Ranks:
    """The engine that keeps a whole copy of the model on every rank."""
    from st.train.ranks.ddp import Ddp

    return Ddp(device, options)


def build_fsdp(device: torch.device, options: RanksOptions) -> Ranks:
    """The engine that keeps a part of every weight on each rank."""
    from st.train.ranks.fsdp import Fsdp

    return Fsdp(device, options)
