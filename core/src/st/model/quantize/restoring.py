"""Restoring: packed numbers times their scales, with little memory beside the weight that comes of it.

A restored weight is needed for one product, twice a step. What moves through memory on the way takes longer than the
arithmetic: each pass over a whole tensor in fp32 moves eight bytes a weight, to make two.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

PIECE_ON_CPU = 1 << 16
"""Weights restored at once on the CPU: 256 KiB in fp32, which stay in the cache of a core."""
PIECE_ON_DEVICE = 1 << 22
"""Weights restored at once elsewhere, where each piece costs launches: 16 MiB in fp32, a part of the cache of one."""
HALVES = 2.0**8
"""By how much fp16 numbers with the bits of an 8-bit float are too small."""


def scaled(numbers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """(out, in) finite numbers of 8 bits, ``scale`` (out, 1) in fp32: their product in fp32, rounded once to ``dtype``.

    Accelerators read the bytes and write the product, and nothing else.
    """
    whole = numbers.new_empty(numbers.shape, dtype=dtype)
    for rows in pieces(numbers.shape[0], numbers.shape[1], numbers.device):
        product_into(whole[rows], numbers[rows], scale[rows])
    return whole


def product_into(whole: Tensor, numbers: Tensor, scale: Tensor) -> None:
    """Write numbers times scale, computed in fp32 and rounded once, into ``whole``."""
    if torch.compiler.is_compiling():
        # A compiler makes one expression of it, and refuses results that are written into a view with gaps.
        whole.copy_(numbers.to(scale.dtype) * scale)
        return
    if numbers.is_floating_point() and numbers.is_cpu:
        if numbers.dtype == torch.float8_e4m3fn:
            numbers, scale = _as_halves(numbers), scale * HALVES
        else:
            numbers = numbers.float()
    elif numbers.is_floating_point():
        # torch multiplies no 8-bit floats; every wider kind holds them exactly.
        whole.copy_(numbers)
        numbers = whole
    torch.mul(numbers, scale, out=whole)


def _as_halves(numbers: Tensor) -> Tensor:
    """Finite numbers of float8_e4m3fn over HALVES, exactly, in fp16.

    The sign, four bits of exponent and three of mantissa are moved to where fp16 has them, whose exponents begin 8
    lower; numbers below the smallest normal one come out right too. Seven times as fast as torch's own conversion on
    the CPU, which takes number by number.
    """
    moved = numbers.view(torch.int8).to(torch.int16)
    moved <<= 7
    # Of the sign, which the wider integer repeats, the uppermost bit is kept.
    moved &= 0xBF80 - (1 << 16)
    return moved.view(torch.float16)


def pieces(rows: int, width: int, device: torch.device) -> Iterator[slice]:
    """Runs of rows whose temporary tensors are small; all rows where a compiler sees them, which makes none."""
    if torch.compiler.is_compiling():
        yield slice(0, rows)
        return
    at_once = max((PIECE_ON_CPU if device.type == "cpu" else PIECE_ON_DEVICE) // max(width, 1), 1)
    for start in range(0, rows, at_once):
        yield slice(start, min(start + at_once, rows))
