"""Adapter files of the family: of the U-Net alone, or of the U-Net and both text encoders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from st import AdapterFormat, LoraShape, Planned, comfyui_format, kohya_format
from st.model.files.formats import UnknownTensors, renamed, split_key
from st.model.files.peft_layout import METADATA, joined_headers
from st.model.files.readers import COMFYUI, KOHYA
from st_sdxl.layers import original_names

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

UNET = "lora_unet"
DOTTED = ("diffusion_model.", "model.diffusion_model.")
"""Begins the names of the U-Net's layers in files that ComfyUI saves."""


@dataclass(frozen=True, slots=True)
class UnetLayers(AdapterFormat):
    """``lora_unet_<layer>.lora_down.weight``, ``.lora_up.weight`` and ``.alpha``; both kinds of names are read, and
    what ComfyUI saves, ``diffusion_model.<original name of a layer>.lora_up.weight``.

    modules: lists every module path of the U-Net. original: whether layers are written with the names of the model's
    original code, as kohya's tools write them, or with those of diffusers.
    """

    modules: Callable[[], Iterable[str]]
    original: bool

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
        return kohya_format(modules, UNET, KOHYA if self.original else COMFYUI)


@dataclass(frozen=True, slots=True)
class Part:
    """A component's share of an adapter.

    ours: begins its modules' paths in the denoiser. inside: begins them in a file, after the component's own name.
    theirs: begin its keys in a file. format: how the share is written by itself.
    """

    ours: str
    inside: str
    theirs: tuple[str, ...]
    format: AdapterFormat


@dataclass(frozen=True, slots=True)
class Parts(AdapterFormat):
    """Several components in one file, each in a format of its own. parts: asked when there is a file to convert.

    unet: the first one's, which tells what can be written.
    """

    parts: Callable[[], Iterable[Part]]
    unet: AdapterFormat

    def to_file(self, state: Mapping[str, Tensor], shape: LoraShape) -> tuple[dict[str, Tensor], dict[str, str]]:
        tensors: dict[str, Tensor] = {}
        header: dict[str, str] = {}
        for part in self.parts():
            mine = {key: tensor for key, tensor in state.items() if key.startswith(part.ours)}
            if not mine:
                continue
            within = LoraShape(_beginning(shape.ranks, part.ours), _beginning(shape.alphas, part.ours))

            def inside(path: str, part: Part = part) -> str:
                return part.inside + path.removeprefix(part.ours)

            found, metadata = part.format.to_file(*renamed(mine, within, inside))
            tensors |= found
            header = joined_headers(header, _without(metadata, part.inside))
        return tensors, header

    def from_file(
        self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
    ) -> tuple[dict[str, Tensor], LoraShape]:
        state: dict[str, Tensor] = {}
        ranks, alphas = dict[str, int](), dict[str, float]()
        left = set(tensors)
        for part in self.parts():
            mine = {key: tensor for key, tensor in tensors.items() if key.startswith(part.theirs)}
            left -= mine.keys()
            if not mine:
                continue

            def outside(path: str, part: Part = part) -> str:
                return part.ours + path.removeprefix(part.inside)

            found, shape = renamed(*part.format.from_file(mine, metadata), outside)
            state |= found
            ranks |= shape.ranks
            alphas |= shape.alphas
        if left:
            begin = ", ".join(start for part in self.parts() for start in part.theirs)
            raise UnknownTensors(sorted(left), len(tensors), why=f"in this format their names begin with {begin}")
        return state, LoraShape(ranks, alphas)

    def refusals(self, planned: Sequence[Planned]) -> Sequence[str]:
        return self.unet.refusals(planned)

    def caveats(self, planned: Sequence[Planned]) -> Sequence[str]:
        return self.unet.caveats(planned)


def _beginning(table: Mapping[str, T], start: str) -> dict[str, T]:
    return {path: value for path, value in table.items() if path.startswith(start)}


def _without(header: Mapping[str, str], inside: str) -> dict[str, str]:
    """A header that names what is inside of a text encoder by the end of its path: some versions of its class have a
    module around all others that is called so, and others have none.
    """
    found = dict(header)
    if inside and METADATA in header:
        found[METADATA] = header[METADATA].replace(f"^{inside}", "").replace(inside, "")
    return found
