"""Flavours: the published models of the family, and what is set for any of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Self

from pydantic import Field, model_validator

from st.model.pipelines.pipeline_family import PipelineOptions

Name = Literal[
    "t2v-1.3b", "t2v-14b", "i2v-480p", "i2v-720p", "t2v-a14b", "i2v-a14b", "ti2v-5b", "vace-1.3b", "vace-14b"
]
Given = Literal["nothing", "padded", "first", "control"]
"""What a denoiser is given of a clip beside the noise: nothing; channels with the first frame and zeros behind it;
the first frame in place of the noise there; channels of VACE."""


@dataclass(frozen=True, slots=True)
class Flavour:
    """One published model.

    repository: on the hub. pipeline: its class in diffusers. given: what the denoiser may be given of a clip. sees:
    whether it is told what a vision model sees in the first frame. experts: whether it is two denoisers, for more and
    for less noise. multiple: of the edges, in pixels. rate: frames per second.
    """

    repository: str
    pipeline: str = "WanPipeline"
    given: Given = "nothing"
    sees: bool = False
    experts: bool = False
    multiple: int = 16
    rate: float = 16.0

    @property
    def version(self) -> str:
        """Of the makers' code and weights."""
        return "2.2" if "Wan2.2" in self.repository else "2.1"


FROM_PICTURE = "WanImageToVideoPipeline"
FLAVOURS: Mapping[Name, Flavour] = MappingProxyType(
    {
        "t2v-1.3b": Flavour("Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
        "t2v-14b": Flavour("Wan-AI/Wan2.1-T2V-14B-Diffusers"),
        "i2v-480p": Flavour("Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", FROM_PICTURE, "padded", sees=True),
        "i2v-720p": Flavour("Wan-AI/Wan2.1-I2V-14B-720P-Diffusers", FROM_PICTURE, "padded", sees=True),
        "t2v-a14b": Flavour("Wan-AI/Wan2.2-T2V-A14B-Diffusers", experts=True),
        "i2v-a14b": Flavour("Wan-AI/Wan2.2-I2V-A14B-Diffusers", FROM_PICTURE, "padded", experts=True),
        "ti2v-5b": Flavour("Wan-AI/Wan2.2-TI2V-5B-Diffusers", given="first", multiple=32, rate=24.0),
        "vace-1.3b": Flavour("Wan-AI/Wan2.1-VACE-1.3B-diffusers", "WanVACEPipeline", "control"),
        "vace-14b": Flavour("Wan-AI/Wan2.1-VACE-14B-diffusers", "WanVACEPipeline", "control"),
    }
)

HIGH, LOW = "transformer", "transformer_2"
"""Components of a checkpoint of two experts: for much noise, and for little."""
MODULES: Mapping[str, str] = MappingProxyType({HIGH: "high_noise", LOW: "low_noise"})
"""What they are called where both learn: not as upstream's files call either of them."""

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
SEEN = ("add_k_proj", "add_v_proj")
FEED_FORWARD = ("ffn.net.0.proj", "ffn.net.2")


class WanOptions(PipelineOptions):
    """Which Wan model is trained, and how it is asked."""

    flavour: Name = "t2v-1.3b"
    """Published model that is trained, or that a checkpoint of your own comes from."""
    checkpoint: str = ""
    """Another folder in diffusers' layout, or a repository on the hub as owner/name. Empty: the flavour's own."""
    experts: Literal["both", "high", "low"] = "both"
    """Which denoiser of t2v-a14b and i2v-a14b learns: the one for much noise, the one for little, or both. One alone
    is shown its own times only, and takes half the memory; the other is loaded for previews."""
    targets: Literal["attention", "attention+ffn"] = "attention"
    """Layers that an adapter changes: attention, or also the two layers behind it. [adapter] targets names others."""
    first_frame: float | None = Field(default=None, ge=0, le=1)
    """Share of the samples whose first frame the denoiser is given, for ti2v-5b and VACE, which can do without. Unset:
    0. The other flavours that begin with a picture are given it always, and the rest never."""
    times: Literal["token", "sample"] = "token"
    """Whether ti2v-5b is told a time for each token, as Wan 2.2 is, or one for each sample, as Wan 2.1. The latter
    saves memory, gives the same, and cannot tell a first frame that is given from the others."""
    flow_shift: float | None = Field(default=None, gt=0)
    """Shift of times in training and in previews: 3 for small clips, 5 and more for large ones. Unset: the
    checkpoint's. [shift] changes training alone."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        one = self.published
        if self.experts != "both" and not one.experts:
            raise ValueError(f"experts = {self.experts!r} has no effect: {self.flavour} is one denoiser")
        if one.experts and self.experts == "both" and self.denoiser:
            raise ValueError("denoiser is one of two; set experts to the one that it is")
        if self.first_frame is not None and one.given not in ("first", "control"):
            raise ValueError(f"first_frame has no effect with {self.flavour}; ti2v-5b and VACE take it")
        if one.given == "control" and 0 < (self.first_frame or 0) < 1:
            raise ValueError("first_frame is 0 or 1 with VACE")
        if self.times == "sample" and (one.given != "first" or self.first_frame):
            raise ValueError("times = 'sample' goes with ti2v-5b, and not with first_frame")
        if self.checkpoint.endswith(".safetensors"):
            raise ValueError(
                "checkpoint is a whole model; name a single file of weights in denoiser, and the flavour that it is of"
            )
        return self

    @property
    def published(self) -> Flavour:
        """What is known of the flavour."""
        return FLAVOURS[self.flavour]

    @property
    def trained(self) -> tuple[str, ...]:
        """Components that learn."""
        if not self.published.experts or self.experts == "high":
            return (HIGH,)
        return (LOW,) if self.experts == "low" else (HIGH, LOW)

    @property
    def needs_picture(self) -> bool:
        """Whether there is no clip of a prompt without a picture."""
        return self.starts and self.published.given != "first"

    @property
    def starts(self) -> bool:
        """Whether the denoiser is given the first frame, of some samples at least."""
        return self.published.given == "padded" or bool(self.first_frame)
