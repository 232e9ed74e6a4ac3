"""Entries of different lengths as a batch."""

from __future__ import annotations

import torch

from st.model.collate import pad_and_stack


def test_equal_shapes_are_stacked_without_a_mask() -> None:
    batch = pad_and_stack([{"text": torch.ones(3, 2), "pooled": torch.tensor(1.0)} for _ in range(2)])

    assert {name: tuple(tensor.shape) for name, tensor in batch.items()} == {"text": (2, 3, 2), "pooled": (2,)}


def test_short_rows_are_padded_with_zeros_and_masked() -> None:
    batch = pad_and_stack([{"text": torch.ones(1, 2)}, {"text": torch.ones(3, 2)}])

    assert batch["text"].shape == (2, 3, 2)
    assert batch["text"][0, 1:].abs().sum() == 0
    assert batch["text_mask"].tolist() == [[True, False, False], [True, True, True]]


def test_an_entry_does_not_depend_on_its_mates() -> None:
    entry = {"text": torch.randn(2, 4)}

    alone, together = pad_and_stack([entry]), pad_and_stack([entry, {"text": torch.randn(5, 4)}])

    assert torch.equal(together["text"][0, together["text_mask"][0]], alone["text"][0])


def test_precision_is_kept() -> None:
    batch = pad_and_stack([{"ids": torch.ones(1, dtype=torch.bfloat16)}, {"ids": torch.ones(2, dtype=torch.bfloat16)}])

    assert batch["ids"].dtype == torch.bfloat16
