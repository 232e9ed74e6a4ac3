"""PackedFamily: a family whose blocks are given [text of its own length, picture, padding] of each sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from st.model.inside.stream import BlockGroup, TokenStream
from st.testing.subjects.tiny import DENOISER, TinyFamily

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch
    from torch import Tensor, nn


class PackedFamily(TinyFamily):
    """TinyFamily with a denoiser that packs, as Lumina 2 and Z-Image do."""

    def load_denoiser(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        from safetensors.torch import load_file

        from st.testing.subjects.packed_parts import PackedTransformer

        denoiser = PackedTransformer()
        denoiser.load_state_dict(load_file(self._file(DENOISER)))
        return denoiser.to(device, dtype).eval()

    def blocks(self) -> Sequence[BlockGroup]:
        stream = TokenStream(place="each", count=_count, starts=_starts, select=_select)
        return (BlockGroup("blocks", stream),)

    @classmethod
    def tiny(cls, directory: Path) -> Self:
        import torch
        from safetensors.torch import save_file

        from st.testing.subjects.packed_parts import PackedTransformer

        family = super().tiny(directory)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            save_file(PackedTransformer().state_dict(), directory / DENOISER)
        return family


def _count(arguments: Mapping[str, Any]) -> int:
    height, width = arguments["x"].shape[-2:]
    return int(height * width)


def _starts(arguments: Mapping[str, Any]) -> Tensor:
    from st.testing.subjects.packed_parts import lengths

    return lengths(arguments["text"], arguments["text_mask"])


def _select(arguments: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
    positions, present = arguments["positions"], arguments["present"]
    width = positions.shape[-1]
    return {
        "positions": positions.gather(1, rows[..., None].expand(-1, -1, width)),
        "present": present.gather(1, rows),
    }
