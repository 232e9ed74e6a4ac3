"""Flavours: the published models of the family, and what is set for any of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Self

from pydantic import Field, model_validator

from st.model.pipelines.pipeline_family import PipelineOptions


@dataclass(frozen=True, slots=True)
class Flavour:
    """One published model.

    repository: on the hub. tokens: of a caption that T5 reads. masks: whether attention is kept from padding. edits:
    whether the pipeline takes reference pictures. assistant: an adapter that is there while it is trained.
    architecture: what other programs call it; they know two kinds, and what comes of dev is dev to them.
    """

    repository: str
    tokens: int = 512
    masks: bool = False
    edits: bool = False
    assistant: str = ""
    architecture: str = "flux-1-dev"


FLAVOURS: Mapping[str, Flavour] = MappingProxyType(
    {
        "dev": Flavour("black-forest-labs/FLUX.1-dev"),
        "krea": Flavour("black-forest-labs/FLUX.1-Krea-dev"),
        "schnell": Flavour(
            "black-forest-labs/FLUX.1-schnell",
            tokens=256,
            assistant="ostris/FLUX.1-schnell-training-adapter",
            architecture="flux-1-schnell",
        ),
        "kontext": Flavour("black-forest-labs/FLUX.1-Kontext-dev", edits=True),
        "fluxbooru": Flavour("terminusresearch/fluxbooru-v0.3"),
        "libreflux": Flavour("jimmycarter/LibreFlux-SimpleTuner", masks=True, architecture="flux-1-schnell"),
    }
)

PICTURE = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
TEXT = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out")
TEXT_MLP = ("ff_context.net.0.proj", "ff_context.net.2")
# Written out: the end "proj_out" would name the denoiser's last layer too.
MLP = ("ff.net.0.proj", "ff.net.2", *TEXT_MLP, "proj_mlp", "single_transformer_blocks.*.proj_out")

TARGETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "mmdit": PICTURE,
        "all": PICTURE + TEXT,
        "all+ffs": PICTURE + TEXT + MLP,
        "context": TEXT,
        "context+ffs": TEXT + TEXT_MLP,
        "tiny": ("single_transformer_blocks.7.proj_out", "single_transformer_blocks.20.proj_out"),
        "nano": ("single_transformer_blocks.7.proj_out",),
    }
)


class FluxOptions(PipelineOptions):
    """Which Flux.1 model is trained, and how it is asked."""

    flavour: Literal["dev", "krea", "schnell", "kontext", "fluxbooru", "libreflux"] = "krea"
    """Published model that is trained, or that a checkpoint of your own comes from."""
    checkpoint: str = ""
    """Another folder in diffusers' layout, or a repository on the hub as owner/name. Empty: the flavour's own."""
    targets: Literal["mmdit", "all", "all+ffs", "context", "context+ffs", "tiny", "nano"] = "all"
    """Layers that an adapter changes: mmdit is attention where pictures pass, context where only text does, all is
    both; +ffs adds the layers between; tiny and nano are two and one of the later blocks. [adapter] targets names
    others."""
    guidance: float | tuple[float, float] = 1.0
    """Guidance that a distilled model is told while it is trained: a number, or two to draw one between for each
    sample. At 1 it stays as distilled as it is."""
    real_guidance: float = Field(default=1.0, ge=1)
    """Strength of guidance by the negative prompt in previews, where [validation] guidance is above 1. Takes twice the
    time; 1 is none."""
    max_tokens: int | None = Field(default=None, ge=1, le=512)
    """Tokens that T5 reads of a caption. Unset: 256 for schnell, 512 for the others."""
    mask_padding: bool | None = None
    """Whether attention is kept from the padding behind a caption, and padding out of the cache. Unset: as the flavour
    was trained, which is yes for libreflux only."""
    train_clip: bool = False
    """Train CLIP too, the smaller of the two text encoders: it then runs in every step. T5 stays as it is."""
    fuse_qkv: bool = False
    """Compute query, key and value as one product. Adapter files are written as if it were three."""
    assistant: str = ""
    """Adapter that is there in training and not in previews, so that a distilled model stays one: a file, or a
    repository on the hub. Empty: schnell's for schnell, none for the others."""
    assistant_strength: float = Field(default=1.0, ge=0)
    """How strong the assistant is. 0 trains without."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        low, high = self.guidance if isinstance(self.guidance, tuple) else (self.guidance, self.guidance)
        if low < 0 or high < low:
            raise ValueError(f"guidance = {self.guidance} is no range; write the lower number first, at least 0")
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
    def masks(self) -> bool:
        """Whether attention is kept from padding."""
        return self.published.masks if self.mask_padding is None else self.mask_padding

    @property
    def tokens(self) -> int:
        """Tokens that T5 reads of a caption."""
        return self.published.tokens if self.max_tokens is None else self.max_tokens
