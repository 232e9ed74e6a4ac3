"""Adapter files of the U-Net, with its layers named as other programs name them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from st.model.files.format_parts import renamed
from st.model.files.formats import AdapterFormat, LoraShape, kohya_format
from st_sdxl.layers import original_names

if TYPE_CHECKING:
    from torch import Tensor

UNET = "lora_unet"


@dataclass(frozen=True, slots=True)
class UnetLayers(AdapterFormat):
    """``lora_unet_<layer>.lora_down.weight``, ``.lora_up.weight`` and ``.alpha``; both kinds of names are read.

    modules: lists every module path of the U-Net. original: whether layers are written with the names of the model's
    original code, as kohya's tools write them, or with those of diffusers.
    """

    modules: Callable[[], Iterable[str]]
    original: bool

    def to_file(self, state: Mapping[str, Tensor], shape: LoraShape) -> tuple[dict[str, Tensor], dict[str, str]]:
        names = original_names(self.modules()) if self.original else {}
        return kohya_format((), UNET).to_file(*renamed(state, shape, lambda path: names.get(path, path)))

    def from_file(
        self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
    ) -> tuple[dict[str, Tensor], LoraShape]:
        paths = list(self.modules())
        ours = {path: path for path in paths} | {name: path for path, name in original_names(paths).items()}
        state, shape = kohya_format(ours, UNET).from_file(tensors, metadata)
        return renamed(state, shape, ours.__getitem__)
