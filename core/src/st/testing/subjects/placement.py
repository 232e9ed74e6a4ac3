"""Away: a placement whose blocks are gone while they do not compute, to find out who asks them then."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor, nn

    from st.model.inside.placement import Direction


class Away:
    """Frozen weights are not a number between ``leave`` and ``enter``. calls: (block, direction, whether it comes)."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, Direction, bool]] = []
        self._kept: list[dict[nn.Parameter, Tensor]] = []
        self._device: torch.device | None = None

    def adopt(self, blocks: Sequence[nn.Module], device: torch.device) -> None:
        self._device = device
        self._kept = [{one: one.data for one in block.parameters() if not one.requires_grad} for block in blocks]
        for index in range(len(blocks)):
            self._send(index)

    def enter(self, index: int, direction: Direction) -> None:
        self.calls.append((index, direction, True))
        for parameter, kept in self._kept[index].items():
            parameter.data = kept.to(self._device)

    def leave(self, index: int, direction: Direction) -> None:
        self.calls.append((index, direction, False))
        self._send(index)

    def _send(self, index: int) -> None:
        import torch

        for parameter, kept in self._kept[index].items():
            parameter.data = torch.full_like(kept, torch.nan, device=self._device)
