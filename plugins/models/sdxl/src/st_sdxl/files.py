"""Adapter files of the U-Net, with its layers named as other programs name them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from st import AdapterFormat, LoraShape, Planned, comfyui_format, kohya_format
from st.model.files.formats import UnknownTensors, renamed, split_key
from st.model.files.peft_layout import diffusers_format
from st.model.files.readers import COMFYUI, KOHYA, Reader
from st_sdxl.layers import original_names

if TYPE_CHECKING:
    from torch import Tensor

UNET = "lora_unet"
DOTTED = ("diffusion_model.", "model.diffusion_model.")
"""Begins the names of the U-Net's layers in files that ComfyUI saves."""


def unet_formats(modules: Callable[[], Iterable[str]], *, kohya_original: bool | None) -> dict[str, AdapterFormat]:
    """Every format that adapters of a U-Net are written in.

    modules: lists every module path of the U-Net. kohya_original: whether kohya's tools name this model's layers as its
    original code does; of others they have diffusers' names. None where they do not have the model.
    """
    kohya = {} if kohya_original is None else {"kohya": UnetLayers(modules, kohya_original, KOHYA)}
    return {
        "diffusers": diffusers_format("unet"),
        **kohya,
        "comfyui": UnetLayers(modules, original=False, reader=COMFYUI),
    }


@dataclass(frozen=True, slots=True)
class UnetLayers(AdapterFormat):
    """``lora_unet_<layer>.lora_down.weight``, ``.lora_up.weight`` and ``.alpha``; both kinds of names are read, and
    what ComfyUI saves, ``diffusion_model.<original name of a layer>.lora_up.weight``.

    modules: lists every module path of the U-Net. original: whether layers are written with the names of the model's
    original code, or with those of diffusers. reader: the program that they are written for.
    """

    modules: Callable[[], Iterable[str]]
    original: bool
    reader: Reader

    def to_file(self, state: Mapping[str, Tensor], shape: LoraShape) -> tuple[dict[str, Tensor], dict[str, str]]:
        names = original_names(self.modules()) if self.original else {}
        return self._layout().to_file(*renamed(state, shape, lambda path: names.get(path, path)))

    def from_file(
        self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
    ) -> tuple[dict[str, Tensor], LoraShape]:
        paths = list(self.modules())
        ours = {path: path for path in paths} | {name: path for path, name in original_names(paths).items()}
        if any(key.startswith(DOTTED) for key in tensors):
            state, shape = comfyui_format().from_file(tensors, metadata)
            strange = [key for key in state if (found := split_key(key)) and found[0] not in ours]
            if strange:
                raise UnknownTensors(strange, len(tensors), why="the U-Net has no such layers")
        else:
            state, shape = self._layout(ours).from_file(tensors, metadata)
        return renamed(state, shape, ours.__getitem__)

    def caveats(self, planned: Sequence[Planned]) -> Sequence[str]:
        return self._layout().caveats(planned)

    def _layout(self, modules: Iterable[str] = ()) -> AdapterFormat:
        return kohya_format(modules, UNET, self.reader)
