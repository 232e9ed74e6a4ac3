"""Group: the processes of a run talking to each other, whatever it is that they share."""

from __future__ import annotations

import os
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist

from st.errors import RankLost
from st.train.ranks.ranks import Ranks
from st.train.ranks.whereabouts import LAUNCHED, STORE, Whereabouts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor

    from st.train.ranks.ranks import RanksOptions

T = TypeVar("T")

BUCKET_BYTES = 25 << 20
"""Gradients are averaged in messages of about this size, as torch's own DDP does."""

LEAVING_SECONDS = 30


class Group(Ranks):
    """Ranks over torch.distributed: gloo on CPUs, the accelerator's own collectives elsewhere.

    Ranks that ``st train`` has started meet in a file of its folder, those of other launchers as torch's environment
    variables say; a process alone is a group of one.
    """

    def __init__(self, device: torch.device, options: RanksOptions) -> None:
        backend = (
            "gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:{dist.get_default_backend_for_device(device)}"
        )
        if device.type != "cpu":
            torch.accelerator.set_device_index(device.index)
        self.device, self.backend, self._options = device, backend, options
        self._whereabouts = Whereabouts.of_this_process()
        with self._waiting("the meeting of all ranks"):
            _join(backend, timedelta(minutes=options.timeout_minutes))
        self._whereabouts.settle("preparing")
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def doing(self, stage: str) -> AbstractContextManager[None]:
        return self._whereabouts.doing(stage)

    def mean(self, values: Tensor) -> Tensor:
        total = values.clone()
        with self._waiting("a mean over ranks"):
            dist.all_reduce(total)
        return total / self.size

    def any(self, flag: bool) -> bool:
        raised = torch.tensor([int(flag)])
        with self._waiting("an agreement of all ranks"):
            dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return bool(raised.item())

    def collect(self, value: T) -> list[T]:
        found: list[T] | None = [value] * self.size if self.rank == 0 else None
        with self._waiting("what every rank has found"):
            dist.gather_object(value, found)
        return found or []

    def everyone(self, said: str) -> list[str]:
        data = said.encode()
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with self._waiting("what every rank has to say"):
            dist.all_gather(lengths, torch.tensor([len(data)]))
            room = max(int(length) for length in lengths)
            texts = [torch.zeros(room, dtype=torch.uint8) for _ in range(self.size)]
            dist.all_gather(texts, torch.tensor([*data, *bytes(room - len(data))], dtype=torch.uint8))
        return [bytes(text[: int(length)].tolist()).decode() for text, length in zip(texts, lengths, strict=True)]

    def barrier(self, stage: str) -> None:
        with self._waiting(stage):
            dist.barrier()

    def close(self, *, clean: bool) -> None:
        """Leave the group. clean: all ranks do, having nothing more to say; they then wait for each other.

        A rank whose sockets close while another is still inside of its last collective can make that one abort.
        """
        if not dist.is_initialized():
            return
        if clean:
            store = dist.distributed_c10d._get_default_store()
            store.set(f"st/left/{self.rank}", "1")
            store.wait([f"st/left/{rank}" for rank in range(self.size)], timedelta(seconds=LEAVING_SECONDS))
        dist.destroy_process_group()

    def average_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Make gradients of weights that every rank has the mean over ranks."""
        # A parameter that no sample of this rank reached still takes part: every rank sends the same messages.
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        with self._waiting("the mean of gradients"):
            for bucket in _buckets([p.grad for p in parameters if p.grad is not None]):
                flat = torch.cat([gradient.flatten() for gradient in bucket])
                dist.all_reduce(flat)
                flat.div_(self.size)
                parts = torch.split(flat, [gradient.numel() for gradient in bucket])
                torch._foreach_copy_(bucket, [part.view_as(one) for part, one in zip(parts, bucket, strict=True)])

    def broadcast(self, parameters: Sequence[Tensor]) -> None:
        """Make these weights, which every rank has, those of rank 0."""
        with self._waiting("the weights of rank 0"):
            for parameter in parameters:
                dist.broadcast(parameter.detach(), src=0)

    def lost(self, error: RuntimeError) -> RankLost | None:
        if not _says_that_a_rank_is_gone(error):
            return None
        place = self._whereabouts.place
        awaited = f", waiting at {place.awaited!r}" if place.awaited else ""
        said = str(error).splitlines()[0].split(". ")[0]
        return RankLost(
            f"rank {self.rank}, in {place.stage!r}{awaited}, lost another rank: it ended, or did not come",
            why=f"{said} (ranks.timeout_minutes = {self._options.timeout_minutes:g})",
        )

    @contextmanager
    def _waiting(self, awaited: str) -> Iterator[None]:
        """Around a collective. Raises RankLost where another rank is gone, or did not come within the timeout."""
        try:
            with self._whereabouts.waiting(awaited):
                yield
        except RuntimeError as error:
            lost = self.lost(error)
            if lost is None:
                raise
            raise lost from error


def _join(backend: str, timeout: timedelta) -> None:
    folder, rank, size = os.environ.get(LAUNCHED), os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    if folder:
        store = dist.FileStore(str(Path(folder) / STORE), int(size or 1))  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=int(rank or 0), world_size=int(size or 1), timeout=timeout)
    elif size is None:
        alone = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=alone, rank=0, world_size=1, timeout=timeout)
    else:
        dist.init_process_group(backend, timeout=timeout)


def _says_that_a_rank_is_gone(error: RuntimeError) -> bool:
    """gloo raises a plain RuntimeError that names its own source file."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Runs of gradients of one dtype of about BUCKET_BYTES."""
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and (size >= BUCKET_BYTES or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.numel() * gradient.element_size()
    if bucket:
        yield bucket
