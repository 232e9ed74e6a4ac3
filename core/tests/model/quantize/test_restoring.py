"""Restored weights are products in fp32, rounded once, and cost little memory beside themselves."""

from __future__ import annotations

import pytest
import torch

from st.model.quantize.restoring import PIECE_ON_CPU, pieces, scaled

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [torch.int8, torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_restored_weight_is_its_product_in_fp32_rounded_once(kind, dtype):
    every = torch.arange(256, dtype=torch.uint8).view(kind)
    every = every[every.float().isfinite()]
    numbers = every.view(torch.uint8).repeat(1 + PIECE_ON_CPU // 64, 1).view(kind)
    scale = torch.rand(len(numbers), 1, generator=torch.Generator().manual_seed(0)) / 448

    restored = scaled(numbers, scale, dtype)

    assert restored.dtype == dtype
    assert torch.equal(restored, (numbers.float() * scale).to(dtype))


def test_pieces_are_every_row_once_in_order_and_small():
    parts = list(pieces(1000, 300, torch.device("cpu")))

    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(1000))
    assert max(part.stop - part.start for part in parts) * 300 <= PIECE_ON_CPU


def test_a_row_that_is_larger_than_a_piece_is_a_piece():
    assert len(list(pieces(3, 2 * PIECE_ON_CPU, torch.device("cpu")))) == 3
