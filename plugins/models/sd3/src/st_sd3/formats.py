"""Formats: adapter files as kohya's tools and ComfyUI write and read them for this family."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from st import AdapterFormat, LoraShape, Planned, comfyui_format, fused_format, kohya_format, reading_also
from st_sd3.names import table

if TYPE_CHECKING:
    from torch import Tensor

    Files = tuple[dict[str, Tensor], dict[str, str]]
    Ours = tuple[dict[str, Tensor], LoraShape]


def kohya(blocks: int) -> AdapterFormat:
    """``lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight`` and so on: the makers' layers, ``alpha`` beside
    each, of a denoiser with so many blocks."""
    return fused_format(kohya_format, table(blocks))


def comfyui(blocks: int) -> AdapterFormat:
    """``transformer.<our path>.lora_A.weight`` with ``alpha`` beside it, which ComfyUI maps onto the makers' layers.

    Files that name those themselves, ``diffusion_model.joint_blocks.0.x_block.attn.qkv``, are read too.
    """
    makers = fused_format(lambda paths: comfyui_format(), table(blocks))
    return reading_also(comfyui_format("transformer"), makers)


@dataclass(frozen=True, slots=True)
class Counted(AdapterFormat):
    """A format that has to know how many blocks the denoiser has. blocks: asked when there is a file to convert."""

    make: Callable[[int], AdapterFormat]
    blocks: Callable[[], int]

    def to_file(self, state: Mapping[str, Tensor], shape: LoraShape) -> Files:
        return self.make(self.blocks()).to_file(state, shape)

    def from_file(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Ours:
        return self.make(self.blocks()).from_file(tensors, metadata)

    def refusals(self, planned: Sequence[Planned]) -> Sequence[str]:
        return self.make(1).refusals(planned)

    def caveats(self, planned: Sequence[Planned]) -> Sequence[str]:
        return self.make(1).caveats(planned)
