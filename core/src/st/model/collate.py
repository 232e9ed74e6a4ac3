"""Collate: encoded samples of different lengths as one batch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

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


def pad_alike(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], names: Iterable[str]
) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """Two batches whose tensors of these names, (B, L, ...), are as long as the longer one: zeros follow the rows.

    Where they differed, ``<name>_mask`` (B, longest), bool, says in both which rows are real.
    """
    differ = [name for name in names if first[name].shape[1] != second[name].shape[1]]
    longest = {name: max(first[name].shape[1], second[name].shape[1]) for name in differ}
    return {**first, **_padded(first, longest)}, {**second, **_padded(second, longest)}


def _padded(batch: Mapping[str, Tensor], lengths: Mapping[str, int]) -> dict[str, Tensor]:
    import torch

    found: dict[str, Tensor] = {}
    for name, length in lengths.items():
        rows = batch[name]
        present = batch.get(f"{name}_mask", torch.ones(rows.shape[:2], dtype=torch.bool, device=rows.device))
        for key, tensor in ((name, rows), (f"{name}_mask", present)):
            padding = tensor.new_zeros(len(tensor), length - tensor.shape[1], *tensor.shape[2:])
            found[key] = torch.cat([tensor, padding], dim=1)
    return found
