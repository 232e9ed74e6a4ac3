"""Kinds of updates that the core's own adapters write or read: two matrices, and whole differences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from st.errors import StError
from st.model.files.formats import DOWN, MAGNITUDE, UP
from st.model.files.update_kinds import UPDATE_KIND, UpdateKind
from st.options import Options

if TYPE_CHECKING:
    from torch import Tensor

    from st.registrar import Registrar


class LowRank(UpdateKind):
    """LoRA: alpha / rank * B A. With a magnitude, as DoRA has it, the change depends on the weight."""

    marks = (DOWN, UP)

    def rank(self, tensors: Mapping[str, Tensor]) -> int | None:
        return len(tensors[DOWN])

    def change(self, tensors: Mapping[str, Tensor]) -> Tensor:
        if MAGNITUDE in tensors:
            return super().change(tensors)
        down, up = tensors[DOWN].float(), tensors[UP].float()
        scale = float(tensors["alpha"]) / len(down) if "alpha" in tensors else 1.0
        return (scale * up.flatten(1) @ down.flatten(1)).reshape(len(up), *down.shape[1:])


class Difference(UpdateKind):
    """A whole weight, and that of a bias beside it."""

    marks = ("diff", "diff_b")

    def change(self, tensors: Mapping[str, Tensor]) -> Tensor:
        if "diff" not in tensors:
            raise StError("only the layer's bias changes")
        return tensors["diff"].float()


def register(register: Registrar) -> None:
    """Both."""
    register.add(UPDATE_KIND, "lora", lambda options: LowRank(), Options)
    register.add(UPDATE_KIND, "full", lambda options: Difference(), Options)
