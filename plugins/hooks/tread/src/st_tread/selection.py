"""Which tokens stay in a route."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from st import StError
from st.model.inside.token_grid import token_grid

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from st import Batch


def kept(chance: Tensor, drop: float, *, size: Tensor | None = None, forced: Tensor | None = None) -> Tensor:
    """The tokens that stay, (K,) sorted indices: K = max(S - round(S * drop), number of forced ones).

    chance: (S,) in [0, 1); the smallest stay. size: (S,) what is compared instead, where it is given. forced: (S,)
    True where a token stays in any case. Krause et al. 2025, arXiv:2501.04765.
    """
    rank = chance if size is None else size
    count = len(rank)
    stays = max(count - round(count * drop), 1)
    if forced is not None:
        forced = forced.to(rank.device)
        rank = rank.masked_fill(forced, -1.0)
        # How many blocks compute is a number on the host: with masks, and only then, it waits for the device.
        stays = max(stays, int(forced.sum()))
    return rank.argsort(stable=True)[:stays].sort().values


def token_sizes(tokens: Tensor) -> Tensor:
    """The L1 norm of each token from 0 (the batch's smallest) to 1, (S,) float32, the mean over samples.

    tokens: (B, S, D). Each sample is stretched to [0, 1] by itself.
    """
    norms = tokens.detach().float().abs().sum(-1)
    low, high = norms.amin(1, keepdim=True), norms.amax(1, keepdim=True)
    return ((norms - low) / (high - low).clamp(min=1e-6)).mean(0)


def masked_tokens(batch: Batch, tokens: int) -> Tensor:
    """Tokens of which any latent counts for more than half in any sample's loss, (S,) bool.

    tokens: S, laid out as (frames, rows, columns) over square patches of the latents.
    """
    import torch

    assert batch.mask is not None, "asked for with a mask only"
    height, width = batch.latents.shape[-2:]
    frames = batch.latents.shape[2] if batch.latents.ndim == 5 else 1
    repeats, rows, columns = _grid(tokens, frames, height, width)
    pooled = torch.nn.functional.adaptive_max_pool2d(batch.mask.float(), (rows, columns))
    return (pooled > 0.5).any(0).flatten().repeat(repeats)


def _grid(tokens: int, frames: int, height: int, width: int) -> tuple[int, int, int]:
    """Frames, rows and columns of tokens. Raises StError where they lie on no grid."""
    found = token_grid(tokens, frames, height, width)
    if found is not None:
        return found
    raise StError(
        "tread cannot tell which tokens lie under a mask",
        why=f"{tokens} tokens are no grid of square patches over {frames} x {height} x {width} latents",
        fix="train without masks, or without tread",
    )


@dataclass(slots=True)
class Selector:
    """Chooses tokens for the batch that is being predicted; the same in every pass, on every rank and after a stop.

    count: latents to the number of tokens made of them; what follows those in the stream is no part of a picture.
    samples_per_step: over all ranks and microbatches, which share one draw.
    """

    seed: int
    samples_per_step: int
    importance: float
    count: Callable[[Tensor], int]
    batch: Batch | None = None

    @contextmanager
    def predicting(self, batch: Batch) -> Iterator[None]:
        """Routes are open, for this batch."""
        before, self.batch = self.batch, batch
        try:
            yield
        finally:
            self.batch = before

    def __call__(self, tokens: Tensor, drop: float, name: str) -> Tensor:
        """Which of these tokens (B, S, D) stay: (K,) sorted indices on their device. name: the route's own draw."""
        import torch

        from st.randomness import keyed

        assert self.batch is not None, "tokens are chosen while a batch is predicted"
        # By step, not by sample: a step's samples lie in other microbatches on another number of ranks.
        step = self.batch.indices[0] // self.samples_per_step
        generator = torch.Generator().manual_seed(keyed(self.seed, step, f"tread/{name}"))
        chance = torch.rand(tokens.shape[1], generator=generator)
        size = None
        if self.importance:
            size = torch.lerp(_moved(chance, tokens.device), token_sizes(tokens), self.importance)
        forced = None if self.batch.mask is None else self._forced(self.batch, tokens.shape[1])
        return _moved(kept(chance, drop, size=size, forced=forced), tokens.device)

    def _forced(self, batch: Batch, total: int) -> Tensor:
        import torch

        inside = masked_tokens(batch, self.count(batch.latents))
        assert len(inside) <= total, f"{len(inside)} tokens of a picture in a stream of {total}"
        return torch.cat([inside, inside.new_zeros(total - len(inside))])


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type != "cuda" or tensor.device == device:
        return tensor.to(device)
    # A copy from pageable memory would wait for everything that the device still has to do.
    return tensor.pin_memory().to(device, non_blocking=True)
