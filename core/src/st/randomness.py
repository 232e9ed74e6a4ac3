"""Random draws keyed by seed, sample and name: the same on any number of ranks and after any number of stops."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor


def keyed(seed: int, index: int, name: str) -> int:
    """64 random bits that depend on the three arguments and on nothing else, machine and Python version included."""
    return int.from_bytes(blake2b(f"{seed}:{index}:{name}".encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True, slots=True)
class Draws:
    """The random draws of B samples.

    indices: (B,) draw index of each sample, counted over the whole run and all ranks. Row i of every draw depends on
    ``seed``, ``indices[i]`` and the draw's name only, and so not on its batch mates. Asking twice gives the same
    answer twice; what must differ has another name. Tensors lie on ``device``; no draw waits for it.
    """

    seed: int
    indices: tuple[int, ...]
    device: torch.device

    def keys(self, name: str) -> tuple[int, ...]:
        """64 random bits for each row."""
        return tuple(keyed(self.seed, index, name) for index in self.indices)

    def numbers(self, name: str) -> tuple[float, ...]:
        """One number in the open interval (0, 1) for each row, on the CPU."""
        # 23 bits and a half: exact in float32, so that no number becomes 0 or 1 on its way into a tensor.
        return tuple(((key >> 41) + 0.5) / 2**23 for key in self.keys(name))

    def integers(self, name: str, below: int) -> tuple[int, ...]:
        """One whole number in [0, below) for each row, on the CPU."""
        return tuple(key % below for key in self.keys(name))

    def uniform(self, name: str, columns: int = 1) -> Tensor:
        """(B,) float32 in the open interval (0, 1), or (B, columns)."""
        if columns == 1:
            return self.tensor(self.numbers(name))
        by_column = [self.numbers(f"{name}/{column}") for column in range(columns)]
        flat = [number for row in zip(*by_column, strict=True) for number in row]
        return self.tensor(flat).reshape(len(self.indices), columns)

    def normal(self, name: str, like: Tensor) -> Tensor:
        """Standard normal numbers in the shape and type of ``like``, (B, ...), drawn in float32 on the device.

        The same on every device of one kind; a CPU and a GPU give different numbers.
        """
        import torch

        assert len(like) == len(self.indices), f"{len(like)} rows are drawn for {len(self.indices)} samples"
        rows = torch.empty(like.shape, dtype=torch.float32, device=self.device)
        generator = torch.Generator(self.device)
        for row, key in zip(rows, self.keys(name), strict=True):
            row.normal_(generator=generator.manual_seed(key))
        return rows.to(like.dtype)

    def stream(self, name: str) -> torch.Generator:
        """A CPU generator for draws that a batch shares (which tokens to drop), keyed by its first sample."""
        import torch

        return torch.Generator().manual_seed(keyed(self.seed, self.indices[0], name))

    def tensor(self, values: Sequence[float]) -> Tensor:
        """Numbers from the CPU as a float32 tensor on the device."""
        import torch

        on_host = torch.tensor(values, dtype=torch.float32)
        if self.device.type != "cuda":
            return on_host.to(self.device)
        # A copy from pageable memory would wait for everything that the device still has to do.
        return on_host.pin_memory().to(self.device, non_blocking=True)
