"""Text: captions as Wan reads them, kept without their padding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from st.model.pipelines.pipeline_text import PipelineText

if TYPE_CHECKING:
    from torch import Tensor

TEXT = "prompt_embeds"
LENGTH = 512
"""Rows that the denoiser is given of a caption. What is behind it is zero."""


class Trimmed(PipelineText):
    """The pipeline's text encoder, without the rows of zeros that it puts behind each caption."""

    @property
    def fingerprint(self) -> str:
        return f"trimmed-{super().fingerprint}"

    def _row(self, named: Mapping[str, Any], row: int) -> dict[str, Tensor]:
        return {name: trimmed(rows) for name, rows in super()._row(named, row).items()}


def trimmed(rows: Tensor) -> Tensor:
    """(L, D) without the zeros at its end."""
    filled = rows.ne(0).any(dim=1).nonzero()
    return rows[: int(filled[-1]) + 1 if len(filled) else 0].clone()


def padded(rows: Tensor) -> Tensor:
    """(L, D) with zeros up to the length that the denoiser is given."""
    import torch

    return torch.cat([rows, rows.new_zeros(LENGTH - len(rows), rows.shape[1])])
