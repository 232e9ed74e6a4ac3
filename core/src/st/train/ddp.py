"""The engine ``ddp``: every rank holds the whole model and averages gradients with the others."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from st.train.ranks import Ranks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor, nn

    from st.model.blocks import BlockGroup

BUCKET_BYTES = 25 << 20
"""Gradients are averaged in messages of about this size, as torch's own DDP does."""


class Ddp(Ranks):
    """Data parallel over torch.distributed: gloo on CPUs, the accelerator's own collectives elsewhere.

    Gradients are averaged once, after the last microbatch, rather than by torch's DistributedDataParallel during
    backward: that wrapper sees only what runs inside its ``forward``, and neither projection heads of techniques nor a
    second prediction do.
    """

    def __init__(self, device: torch.device, timeout_minutes: float) -> None:
        backend = (
            "gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:{dist.get_default_backend_for_device(device)}"
        )
        if device.type != "cpu":
            torch.accelerator.set_device_index(device.index)
        dist.init_process_group(backend, timeout=timedelta(minutes=timeout_minutes))
        self.device, self.backend = device, backend
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.local = int(os.environ.get("LOCAL_RANK", "0"))

    def describe(self) -> str:
        return f"ddp, {self.size} ranks, {self.backend} on {self.device.type}"

    def shard(self, denoiser: nn.Module, blocks: Sequence[BlockGroup]) -> nn.Module:
        for parameter in denoiser.parameters():
            if parameter.requires_grad:
                dist.broadcast(parameter.detach(), src=0)
        return denoiser

    def backward(self, loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]

    def synchronise(self, parameters: Sequence[Tensor]) -> None:
        # A parameter that no sample of this rank reached still takes part: every rank sends the same messages.
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([p.grad for p in parameters if p.grad is not None]):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            flat.div_(self.size)
            parts = torch.split(flat, [gradient.numel() for gradient in bucket])
            torch._foreach_copy_(bucket, [part.view_as(one) for part, one in zip(parts, bucket, strict=True)])

    def mean(self, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total / self.size

    def any(self, flag: bool) -> bool:
        raised = torch.tensor([int(flag)])
        dist.all_reduce(raised, op=dist.ReduceOp.MAX)
        return bool(raised.item())

    def barrier(self, stage: str) -> None:
        dist.barrier()

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()


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
