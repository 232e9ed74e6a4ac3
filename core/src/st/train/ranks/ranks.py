"""Ranks: the processes of a run. The only file that knows how many there are."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import Field

from st.errors import RankLost, StError
from st.options import Options
from st.registrar import StrategyKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    import torch
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from st.model.inside.blocks import BlockGroup
    from st.train.ranks.gradients import ClipOptions, Norms


ENGINE: StrategyKind[Callable[[torch.device, RanksOptions], Ranks]] = StrategyKind("engine", frozenset({"splits"}))
"""``[ranks] engine``: how several devices work on one run: ``build(device, options)``.

splits: weights or optimizer state lie in parts on the ranks; what needs them whole is refused beforehand.
"""
T = TypeVar("T")


class RanksOptions(Options):
    """How many processes share the work, and how."""

    engine: str = "auto"
    """How the model is shared out: single, ddp (each process has the whole model), fsdp (each has a part of every
    weight), or one that a plugin adds; auto is single for one process, else ddp."""
    processes: int = Field(0, ge=0, le=1024)
    """Processes on this machine; 0 is one per accelerator, and one on a machine without any."""
    timeout_minutes: float = Field(90.0, gt=0)
    """How long a rank waits for the others before it gives up."""
    patience_seconds: float = Field(30.0, gt=0)
    """How long a rank waits for the others before the missing ones are named on the console."""


class Ranks(ABC):
    """An engine: this process among those of the run. rank in [0, size); main is rank 0; device is this rank's own.

    An engine that splits weights holds a part of each on every rank. ``part``, ``gather`` and ``cut`` go between the
    two forms; checkpoints hold the whole, so that a run goes on with any engine on any number of ranks.
    """

    rank: int = 0
    size: int = 1
    device: torch.device
    spreads: bool = True
    """Whether ranks can predict each for itself; False where every prediction needs all of them."""
    gathers: bool = False
    """Whether every rank takes part in collecting what a checkpoint holds."""
    takes_from_host: bool = False
    """Whether ``shard`` takes a denoiser from memory of the host, and no device ever holds more of it whole than a
    block."""
    sequence: int = 1
    """Ranks that share the tokens of the same samples between them; neighbours, by their numbers."""
    trains_several: bool = True
    """Whether it steps several optimizers, each with weights of its own."""
    scaler: torch.amp.GradScaler | None = None
    """What scales losses before ``backward`` and gradients after it, for fp16."""

    @property
    def data(self) -> int:
        """Shares of the data: how many ranks, or groups of ``sequence`` ranks, see samples of their own."""
        return self.size // self.sequence

    @property
    def share(self) -> int:
        """This rank's share of the data, in [0, data)."""
        return self.rank // self.sequence

    @property
    def main(self) -> bool:
        """Whether this rank writes files and talks to people."""
        return self.rank == 0

    @abstractmethod
    def describe(self) -> str:
        """What really runs, for the console and the manifest: "ddp, 2 ranks, gloo on cpu"."""

    @abstractmethod
    def shard(self, denoiser: nn.Module, blocks: Sequence[BlockGroup]) -> nn.Module:
        """Make the denoiser's weights those of rank 0, placed as the engine has them.

        Parameters may be others afterwards, of the same names.
        """

    @abstractmethod
    def backward(self, loss: Tensor, parameters: Sequence[Tensor] | None = None, *, again: bool = False) -> None:
        """Add the gradients of a loss to those of this step.

        parameters: those that they are added to, and no others; everything that learns where None. again: another
        backward pass through what was computed follows.
        """

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
    def collect(self, value: T) -> list[T]:
        """What every rank gives, in their order, on rank 0; nothing on others. Every rank calls it."""

    @abstractmethod
    def everyone(self, said: str) -> list[str]:
        """What each rank says, by rank; every rank calls it. Between processes on the host, never on the device."""

    @abstractmethod
    def barrier(self, stage: str) -> None:
        """Wait for the others. stage names what was being done, for the message when one does not come."""

    def doing(self, stage: str) -> AbstractContextManager[None]:
        """Inside of a ``with``, this rank is in ``stage``: what is said of it should it die there."""
        return nullcontext()

    def lost(self, error: RuntimeError) -> RankLost | None:
        """What to raise in place of an error that came of another rank's end; None for any other."""
        return None

    def adopt(
        self,
        denoiser: nn.Module,
        optimizer: Optimizer,
        clip: ClipOptions,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        """Take over the optimizer, when it and its schedule are built and before the first step.

        The engine may exchange what is in its parameter groups, which stay the same objects. scaler: for fp16, which
        engines that split weights are never asked for.
        """
        self.scaler = scaler

    def groups(self, optimizer: Optimizer) -> Sequence[dict[str, Any]]:
        """The optimizer's parameter groups, with the parameters that it was built with."""
        return optimizer.param_groups

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss as ``backward`` is to see it."""
        return loss if self.scaler is None else self.scaler.scale(loss)

    def step(self, optimizer: Optimizer, parameters: Sequence[Tensor], options: ClipOptions) -> Norms:
        """One optimizer step: the mean of gradients over ranks, clipped; they are gone afterwards.

        The L2 norms of that mean before it was clipped. parameters: everything that learns. With a scaler, a step whose
        gradients are not finite changes nothing but the scale.
        """
        self.synchronise(parameters)
        if self.scaler is not None:
            # After the mean, which spreads what is not finite: all ranks then leave out the same steps.
            self.scaler.unscale_(optimizer)
        norms = self.clip(parameters, options)
        if self.scaler is not None:
            self.scaler.step(optimizer)
            self.scaler.update()
        else:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norms

    def clip(self, parameters: Sequence[Tensor], options: ClipOptions) -> Norms:
        """Clip gradients in place; their L2 norms as they were before."""
        from st.train.ranks.gradients import clip

        return clip(parameters, options)

    def splits(self, parameter: Tensor) -> bool:
        """Whether this rank holds only a part of a parameter."""
        return False

    def part(self, parameter: Tensor) -> Tensor:
        """What this rank holds of a parameter, over the same memory, without gradient; ``written`` ends a write."""
        return parameter.detach()

    def gather(self, part: Tensor, parameter: Tensor) -> Tensor:
        """The whole of a tensor that lies as the parameter does, of which this rank holds ``part``.

        Every rank calls it where ``gathers``; whole on rank 0 only.
        """
        return part

    def cut(self, whole: Tensor, parameter: Tensor) -> Tensor:
        """This rank's part of a tensor that is to lie as the parameter does."""
        return whole

    def written(self) -> None:
        """Parts of weights were written to: forget what was put together of the old ones."""

    def whole(self, denoiser: nn.Module, *, frozen: bool) -> AbstractContextManager[None]:
        """Inside, rank 0 can write the denoiser to a file; every rank enters. frozen: whether it reads weights that do
        not learn."""
        return nullcontext()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Its state of whole tensors, on rank 0; not copied where they are whole already."""
        return optimizer.state_dict()

    def load_optimizer_state(self, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
        """Restore what ``optimizer_state`` gave on rank 0, of any engine."""
        optimizer.load_state_dict(dict(state))

    def close(self, *, clean: bool) -> None:
        """Leave the group. clean: every rank is about to."""


class Single(Ranks):
    """One process, nothing shared."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def describe(self) -> str:
        return f"single, 1 rank on {self.device}"

    def shard(self, denoiser: nn.Module, blocks: Sequence[BlockGroup]) -> nn.Module:
        return denoiser

    def backward(self, loss: Tensor, parameters: Sequence[Tensor] | None = None, *, again: bool = False) -> None:
        self.scaled(loss).backward(retain_graph=again or None, inputs=parameters)  # type: ignore[no-untyped-call]

    def synchronise(self, parameters: Sequence[Tensor]) -> None:
        pass

    def mean(self, values: Tensor) -> Tensor:
        return values

    def any(self, flag: bool) -> bool:
        return flag

    def collect(self, value: T) -> list[T]:
        return [value]

    def everyone(self, said: str) -> list[str]:
        return [said]

    def barrier(self, stage: str) -> None:
        pass


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
