"""Collate: encoded samples of different lengths as one batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor


def pad_and_stack(encoded: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """B entries of equal names as tensors (B, ...), the first dimension of each entry padded with zeros at its end.

    Where any entry had to be padded, ``<name>_mask`` (B, longest), bool, says which rows are real.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    names = encoded[0].keys()
    assert all(entry.keys() == names for entry in encoded), "all samples come from the same encoders"
    batch: dict[str, Tensor] = {}
    for name in names:
        rows = [entry[name] for entry in encoded]
        if all(row.shape == rows[0].shape for row in rows):
            batch[name] = torch.stack(rows)
            continue
        lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
        batch[name] = pad_sequence(rows, batch_first=True)
        batch[f"{name}_mask"] = torch.arange(batch[name].shape[1], device=rows[0].device) < lengths[:, None]
    return batch
