"""What a run file says of control networks."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from st import Options
from st.model.adapters.lora import LoraOptions


class ControlNetOptions(Options):
    """A network beside the frozen denoiser reads a control picture and adds to what the denoiser's blocks pass on.

    Zhang et al. 2023, arXiv:2302.05543.
    """

    layers: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Blocks of each kind that the network copies from the denoiser, from the first, where the model lets one choose:
    [4, 10] for two kinds. Empty: what is usual for the model."""
    start: str = ""
    """Folder of a control network to go on from, as diffusers saves one. Empty: begin from the denoiser's weights."""
    strength: float = Field(default=1.0, gt=0)
    """Factor of what the network adds, in training and in previews."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Precision of the trained weights."""
    recompute: bool = False
    """Compute the network's activations again in the backward pass: less memory, about a third slower."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.start and self.layers:
            raise ValueError("start takes the number of blocks from its folder; leave out layers")
        return self


class ControlLoraOptions(LoraOptions):
    """A low-rank update of a denoiser whose first layer reads the latents of a control picture beside the noise."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.start:
            raise ValueError("start: a control LoRA cannot go on from a file yet; resume the run that made it")
        if self.changes_base:
            raise ValueError(f"init = {self.init!r} moves the base, which a control LoRA's users do not have")
        return self
