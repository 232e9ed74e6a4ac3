"""Settings of a family whose denoiser is a U-Net: what is set for any table of times, and where adapters attach."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from st_sdxl.table_options import TableOptions

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TRANSFORMER = (*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv")
TARGETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"attention": ATTENTION, "transformer": TRANSFORMER, "unet": (*TRANSFORMER, *CONVOLUTIONS)}
)


class UnetOptions(TableOptions):
    """Which model is trained, and to say what."""

    targets: Literal["attention", "transformer", "unet"] = "attention"
    """Layers of the U-Net that an adapter changes: attention, all of the transformer blocks, or convolutions too.
    [adapter] targets names others."""
