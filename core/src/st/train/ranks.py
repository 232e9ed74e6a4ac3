"""Ranks: the processes of a run. The only file that knows how many there are."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from pydantic import Field

from st.errors import StError
from st.options import Options

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor, nn

    from st.model.blocks import BlockGroup
    from st.registrar import Registrar


class RanksOptions(Options):
    """How many processes share the work, and how."""

    engine: str = "auto"
    """How the model is shared out: single, ddp, or one that a plugin adds; auto is single for one process, else ddp."""
    processes: int = Field(0, ge=0)
    """Processes on this machine; 0 is one per accelerator, and one on a machine without any."""
    timeout_minutes: float = Field(90.0, gt=0)
    """How long a rank waits for the others before it gives up."""


class Ranks(ABC):
    """An engine: this process among those of the run. rank in [0, size); main is rank 0; device is this rank's own."""

    rank: int = 0
    size: int = 1
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this rank writes files and talks to people."""
        return self.rank == 0

    @abstractmethod
    def describe(self) -> str:
        """What really runs, for the console and the manifest: "ddp, 2 ranks, gloo on cpu"."""

    @abstractmethod
    def shard(self, denoiser: nn.Module, blocks: Sequence[BlockGroup]) -> nn.Module:
        """Make the denoiser's weights those of rank 0, placed as the engine has them."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss to those of this step."""

    @abstractmethod
    def synchronise(self, parameters: Sequence[Tensor]) -> None:
        """Make gradients the mean over ranks; called once per optimizer step."""

    @abstractmethod
    def mean(self, values: Tensor) -> Tensor:
        """The mean over ranks of a small tensor of numbers; every rank calls it."""

    @abstractmethod
    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank; every rank calls it."""

    @abstractmethod
    def barrier(self, stage: str) -> None:
        """Wait for the others. stage names what was being done, for the message when one does not come."""

    def close(self) -> None:
        """Leave the group."""


class Single(Ranks):
    """One process, nothing shared."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def describe(self) -> str:
        return f"single, 1 rank on {self.device}"

    def shard(self, denoiser: nn.Module, blocks: Sequence[BlockGroup]) -> nn.Module:
        return denoiser

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def synchronise(self, parameters: Sequence[Tensor]) -> None:
        pass

    def mean(self, values: Tensor) -> Tensor:
        return values

    def any(self, flag: bool) -> bool:
        return flag

    def barrier(self, stage: str) -> None:
        pass


def register(register: Registrar) -> None:
    """Add the built-in engines."""
    register.engine("single", build_single, RanksOptions)
    register.engine("ddp", build_ddp, RanksOptions)


def build_single(device: torch.device, options: RanksOptions) -> Ranks:
    """The engine of one process."""
    return Single(device)


def build_ddp(device: torch.device, options: RanksOptions) -> Ranks:
    """The engine that keeps a whole copy of the model on every rank."""
    from st.train.ddp import Ddp

    return Ddp(device, options.timeout_minutes)


def choose_device(name: str) -> torch.device:
    """``auto`` is this rank's accelerator where there is one, else the CPU.

    Raises StError where the device does not exist.
    """
    import torch

    local = int(os.environ.get("LOCAL_RANK", "0"))
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name == "auto":
        return torch.device(accelerator.type, local) if accelerator else torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise StError(
            f"device = {name!r}: torch knows no such device", fix='set device to "auto", "cpu" or "cuda:0"'
        ) from error
    if device.type not in {"cpu", "meta"} and (accelerator is None or accelerator.type != device.type):
        found = accelerator.type if accelerator else "cpu only"
        raise StError(
            f"device = {name!r}: this machine has no such device (found: {found})", fix='set device to "auto"'
        )
    indexed = device.type == "cpu" or ":" in name
    return device if indexed else torch.device(device.type, local)


def world_size() -> int:
    """How many processes the launcher of this one started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def processes_wanted(options: RanksOptions, device: str) -> int:
    """How many processes this machine should run; asks torch only where it has to."""
    if options.processes:
        return options.processes
    if device not in {"auto", "cuda", "xpu"}:
        return 1
    import torch

    return max(torch.accelerator.device_count(), 1) if torch.accelerator.is_available() else 1


def engine_name(options: RanksOptions) -> str:
    """The engine that ``auto`` stands for on this many processes."""
    if options.engine != "auto":
        return options.engine
    return "single" if world_size() == 1 else "ddp"
