"""Soundness: whether a network's weights are numbers, and whether they are the same as another time."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch

from st.errors import StError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

CHUNK_WORDS = 1 << 20
"""Words of 8 bytes that are summed at once. Part of what a digest means, and small enough for a CPU's caches."""


def nonfinite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors that hold an infinity or NaN. Reads each device once; what holds no floats is finite."""
    by_device: dict[torch.device, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.is_meta:
            by_device.setdefault(tensor.device, {})[name] = tensor.isfinite().all()
    found = []
    for flags in by_device.values():
        fine = torch.stack(list(flags.values())).tolist()
        found += [name for name, good in zip(flags, fine, strict=True) if not good]
    return found


def require_numbers(network: nn.Module, what: str) -> None:
    """Raises StError naming the weights of a network that hold an infinity or NaN. what: "model.checkpoint = 'x'"."""
    broken = nonfinite(dict(network.named_parameters()))
    if broken:
        raise StError(
            f"{what}: {len(broken)} weights of its {type(network).__name__} are not finite, such as {broken[0]!r}",
            why="the file holds NaN or infinity, and everything computed with it would",
            fix="load the file again from where it came from, or choose another precision",
        )


def weights_digest(network: nn.Module) -> str:
    """One digest of all weights, the same on any device. Every changed bit changes it."""
    state = network.state_dict()
    sums = {name: _sum(tensor) for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}
    digest = hashlib.blake2b(digest_size=16)
    by_device: dict[torch.device, list[str]] = {}
    for name, total in sums.items():
        by_device.setdefault(total.device, []).append(name)
    values: dict[str, int] = {}
    for names in by_device.values():
        values |= dict(zip(names, torch.stack([sums[name] for name in names]).tolist(), strict=True))
    for name, value in sorted(values.items()):
        digest.update(f"{name}\0{tuple(state[name].shape)}\0{state[name].dtype}\0{value}\0".encode())
    return digest.hexdigest()


def _sum(tensor: Tensor) -> Tensor:
    """() int64, modulo 2**64: words times odd numbers by place, so that one changed word always shows."""
    flat = tensor.detach().contiguous().reshape(-1)
    if flat.is_meta or not flat.numel():
        return torch.zeros((), dtype=torch.int64)
    data = flat.view(torch.uint8)
    padding = -data.numel() % 8
    if padding or flat.data_ptr() % 8:
        data = torch.cat([data, data.new_zeros(padding)])
    words = data.view(torch.int64)
    factors = torch.arange(1, 2 * min(CHUNK_WORDS, words.numel()) + 1, 2, device=words.device)
    total = torch.zeros((), dtype=torch.int64, device=words.device)
    for chunk in torch.split(words, CHUNK_WORDS):
        total = total * 1_000_003 + (chunk * factors[: chunk.numel()]).sum()
    return total
