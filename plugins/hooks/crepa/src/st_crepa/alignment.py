"""Alignment: how far a block's tokens agree with features. Only imported by a run that trains."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from st import StError
from st.model.inside.token_grid import token_grid

if TYPE_CHECKING:
    from st_crepa.options import CrepaOptions


class Projector(nn.Module):
    """p = Linear(LayerNorm(h)) in float32, or a convolution over each frame's tokens in place of the linear layer.

    Takes and gives (B, F, rows, columns, width). Yu et al. 2024, "Representation Alignment for Generation",
    arXiv:2410.06940.
    """

    def __init__(self, width: int, features: int, kernel: int, seed: int) -> None:
        super().__init__()
        self.kernel = kernel
        # Drawn on the CPU from a seed of its own, so that all ranks begin alike.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.norm = nn.LayerNorm(width)
            self.layer: nn.Module = (
                nn.Linear(width, features) if kernel == 1 else nn.Conv2d(width, features, kernel, padding=kernel // 2)
            )

    def forward(self, tokens: Tensor) -> Tensor:
        normed = self.norm(tokens.float())
        if self.kernel == 1:
            projected: Tensor = self.layer(normed)
            return projected
        frames = normed.flatten(0, 1).permute(0, 3, 1, 2)
        convolved: Tensor = self.layer(frames)
        return convolved.permute(0, 2, 3, 1).reshape(*tokens.shape[:4], -1)


@dataclass(frozen=True, slots=True)
class Alignment:
    """loss: what is minimised, before its weight, (). similarity: mean cosine with the own frame, (), detached."""

    loss: Tensor
    similarity: Tensor


def align(projected: Tensor, features: Tensor, options: CrepaOptions) -> Alignment:
    """Minus the agreement of a clip's tokens with the features of its own and neighbouring frames.

    projected: (B, F, rows, columns, E). features: (B, F', rows', columns', E), of frames evenly spaced over the clip.
    S(f) = sim(f, f) + sum over neighbours g of exp(-|f - g| / tau) sim(f, g), where sim is the mean over tokens of
    cosines; loss = -mean over clips and frames of S. A picture is a clip of one frame. Hwang et al. 2025, "Cross-Frame
    Representation Alignment", arXiv:2506.09229.
    """
    features = features.float()
    if options.spatial_norm:
        features = spatially_normed(features, options.spatial_norm)
    chosen = evenly(features.shape[1], projected.shape[1])
    features = torch.stack([features[:, frame] for frame in chosen], dim=1)
    one, other = on_one_grid(projected, features) if options.spatial_align else (pooled(projected), pooled(features))
    own = similarity(one, other)
    total, weights = own, torch.ones_like(own)
    for offset, weight in neighbours(options, one.shape[1]):
        # Frame f with frame f + offset, and frame f + offset with frame f.
        for mine, theirs, edge in (
            (one[:, :-offset], other[:, offset:], (0, offset)),
            (one[:, offset:], other[:, :-offset], (offset, 0)),
        ):
            found = similarity(mine, theirs)
            total = total + weight * nn.functional.pad(found, edge)
            weights = weights + weight * nn.functional.pad(torch.ones_like(found), edge)
    if options.normalize_neighbour_sum:
        total = total / weights
    score = total.mean(1) if options.normalize_by_frames else total.sum(1)
    loss = -score.mean()
    if options.manifold_weight:
        loss = loss + options.manifold_weight * manifold(one, other)
    return Alignment(loss, own.detach().mean())


def neighbours(options: CrepaOptions, frames: int) -> list[tuple[int, float]]:
    """(offset, weight) of the neighbours that a clip of so many frames has."""
    furthest = options.adjacent_distance
    offsets = range(1, furthest + 1) if options.cumulative_neighbors else [furthest]
    return [(offset, math.exp(-offset / options.adjacent_tau)) for offset in offsets if 0 < offset < frames]


def similarity(one: Tensor, other: Tensor) -> Tensor:
    """Mean over tokens of cosines, (B, F), of (B, F, N, E) each."""
    return nn.functional.cosine_similarity(one, other, dim=-1).mean(-1)


def manifold(one: Tensor, other: Tensor) -> Tensor:
    """Mean squared difference of the token-by-token cosine matrices of each frame, ()."""
    first, second = (nn.functional.normalize(tokens, dim=-1) for tokens in (one, other))
    return (second @ second.mT - first @ first.mT).square().mean()


def spatially_normed(features: Tensor, share: float) -> Tensor:
    """(f - share * mean) / std, over the tokens of each frame. features: (B, F, rows, columns, E)."""
    mean = features.mean((2, 3), keepdim=True)
    return (features - share * mean) / (features.std((2, 3), keepdim=True) + 1e-6)


def pooled(grids: Tensor) -> Tensor:
    """The mean over each frame as its one token, (B, F, 1, E)."""
    return grids.mean((2, 3)).unsqueeze(2)


def on_one_grid(projected: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Both on the grid of the one with fewer tokens, (B, F, N, E) each."""
    mine, theirs = tuple(projected.shape[2:4]), tuple(features.shape[2:4])
    grid = mine if math.prod(mine) <= math.prod(theirs) else theirs
    return resized(projected, *grid).flatten(2, 3), resized(features, *grid).flatten(2, 3)


def resized(grids: Tensor, rows: int, columns: int) -> Tensor:
    """Bilinear interpolation of (B, F, rows', columns', E) to another grid, centres aligned.

    As two products with matrices: the backward pass of torch's own adds up in another order each time on a GPU.
    """
    if grids.shape[2:4] == (rows, columns):
        return grids
    down, across = _bilinear(grids, grids.shape[2], rows), _bilinear(grids, grids.shape[3], columns)
    return torch.einsum("rh,bfhwe,cw->bfrce", down, grids, across)


def _bilinear(like: Tensor, before: int, after: int) -> Tensor:
    """The matrix that interpolates ``before`` numbers at ``after`` places, (after, before)."""
    numbers = torch.eye(before, dtype=like.dtype, device=like.device)[None]
    return nn.functional.interpolate(numbers, size=after, mode="linear", align_corners=False)[0].T


def evenly(total: int, count: int) -> list[int]:
    """``count`` of ``total`` frames, evenly spaced from the first to the last."""
    return [round(number * (total - 1) / max(count - 1, 1)) for number in range(count)]


def grid_of(tokens: int, frames: int, height: int, width: int) -> tuple[int, int, int]:
    """(frames, rows, columns) of tokens that are square patches of latents.

    Raises StError where they lie on none.
    """
    found = token_grid(tokens, frames, height, width)
    if found is not None:
        return found
    raise StError(
        "crepa cannot tell where the tokens of a block lie",
        why=f"{tokens} tokens are no grid of square patches over {frames} x {height} x {width} latents",
        fix="set crepa.block_index to another block, or leave crepa out",
    )


def as_grid(tokens: Tensor, latents: Tensor, count: int) -> Tensor:
    """A block's tokens (B, S, D) as (B, F, rows, columns, D). count: those of the sample; further ones are not its."""
    tokens = tokens[:, :count]
    frames = latents.shape[2] if latents.ndim == 5 else 1
    return tokens.reshape(len(tokens), *grid_of(tokens.shape[1], frames, *latents.shape[-2:]), tokens.shape[2])
