"""Unet: a family whose denoiser is diffusers' U-Net: names of layers, formats, schedules and control networks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from st import BlockGroup, Encoder, GeometryRule, StError, TokenStream
from st_sdxl.table_family import TableFamily
from st_sdxl.unet_options import TARGETS, UnetOptions

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from st import Batch, Noised, Shot
    from st.model.files.format_parts import Part
    from st.model.files.formats import AdapterFormat
    from st.model.pipelines.text_stack import TextStack

HALVES = ("down_blocks", "mid_block", "up_blocks")
"""Parts of the U-Net, in the order in which they run."""

O = TypeVar("O", bound=UnetOptions)  # noqa: E741


class UnetFamily(TableFamily[O]):
    """A U-Net that removes noise by a table of times, and hears captions through cross-attention.

    A subclass names its pipeline, and says in ``told`` what the U-Net is told beside latents, times and text.
    """

    geometry = GeometryRule(multiple=8)
    denoiser = "unet"
    drops_tokens = False
    full_precision = ("conv_in", "conv_out", "linear_1", "linear_2")
    first_attends: ClassVar[int] = 1
    """How many latents along each edge are one token of the first blocks that attend."""
    kohya_original: ClassVar[bool | None] = False
    """Whether kohya's tools name the U-Net's layers as the model's original code does; None where they have no such
    model."""

    def __init__(self, options: O) -> None:
        super().__init__(options)
        self._modules: list[str] = []

    def learning_text(self) -> TextStack | None:
        """The text encoders that learn too; None where none does."""
        return None

    def told(self, batch: Batch, dtype: torch.dtype) -> Mapping[str, Any]:
        """Further arguments of the U-Net's call."""
        return {}

    def load_denoiser(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        unet, stack = super().load_denoiser(device, dtype), self.learning_text()
        return stack.join(unet, device, dtype) if stack else unet

    def tokens(self, latents: Tensor) -> int:
        edge = self.first_attends
        return -(-latents.shape[-2] // edge) * -(-latents.shape[-1] // edge)

    def predict(self, denoiser: nn.Module, noised: Noised, batch: Batch) -> Tensor:
        from st.model.pipelines.learning_text import predict_with_text

        return predict_with_text(self._answer, denoiser, noised, batch)

    def adapter_targets(self) -> Sequence[str]:
        stack = self.learning_text()
        return (*TARGETS[self.options.targets], *(stack.targets if stack else ()))

    def adapter_formats(self) -> Mapping[str, AdapterFormat]:
        from st.model.files.format_parts import Parts
        from st_sdxl.files import unet_formats

        names = unet_formats(self.module_paths, kohya_original=self.kohya_original)
        stack = self.learning_text()
        if stack is None:
            return names
        return {name: Parts(partial(_parts, name, unet, stack), unet) for name, unet in names.items()}

    def module_paths(self) -> list[str]:
        if not self._modules:
            self._modules = super().module_paths()
        return self._modules

    def blocks(self) -> Sequence[BlockGroup]:
        # Convolutions between them need every token in its place.
        whole = TokenStream(droppable=False)
        inside = "unet." if self.learning_text() else ""
        paths = [path for path in self.module_paths() if path.endswith(".transformer_blocks")]
        ordered = sorted(paths, key=lambda path: HALVES.index(path.split(".")[0]))
        return tuple(BlockGroup(f"{inside}{path}", whole) for path in ordered)

    def control_encoder(self) -> Encoder:
        """Control pictures are read as they are, by the control network's own layers."""
        from st.data.media.pixels import Pixels

        return Pixels()

    def make_control(self, denoiser: nn.Module, layers: Sequence[int]) -> nn.Module:
        """Upstream's control network, begun from the U-Net's first half."""
        from diffusers import ControlNetModel

        if layers:
            raise StError("adapter.layers has no effect here: the network copies half of the U-Net", fix="delete it")
        if self.learning_text():
            raise StError("model.train_text does not go with a control network", fix="set model.train_text to false")
        unet: Any = denoiser
        network: nn.Module = ControlNetModel.from_unet(unet)
        return network

    def controlled(self, network: nn.Module, arguments: Mapping[str, Any], shown: Tensor) -> Mapping[str, Any]:
        """The control network's residuals. shown: (B, 3, H, W) uint8."""
        sample, dtype = arguments["sample"], weight_type(network)
        down, middle = network(
            sample.to(dtype),
            arguments["timestep"],
            encoder_hidden_states=arguments["encoder_hidden_states"].to(dtype),
            controlnet_cond=shown.to(dtype) / 255,
            added_cond_kwargs=arguments.get("added_cond_kwargs"),
            return_dict=False,
        )
        return {
            "down_block_additional_residuals": [one.to(sample.dtype) for one in down],
            "mid_block_additional_residual": middle.to(sample.dtype),
        }

    def render(self, denoiser: nn.Module, shot: Shot) -> Tensor:
        import torch

        from st.model.pipelines.learning_text import plain, read_text

        negative = None if shot.negative is None else read_text(denoiser, shot.negative)
        unet = plain(denoiser)
        pixels = super().render(unet, replace(shot, conditions=read_text(denoiser, shot.conditions), negative=negative))
        if not torch.isfinite(pixels).all():
            raise StError(
                "the picture is not finite",
                why="the autoencoder overflows in float16" if weight_type(unet) == torch.float16 else "",
                fix='set precision to "bf16", or use an autoencoder made for float16',
            )
        return pixels

    def save_checkpoint(self, denoiser: nn.Module, directory: Path) -> None:
        from st.model.pipelines.learning_text import plain

        super().save_checkpoint(plain(denoiser), directory)
        if stack := self.learning_text():
            stack.save(denoiser, directory)

    def _answer(self, unet: nn.Module, noised: Noised, batch: Batch) -> Tensor:
        dtype = weight_type(unet)
        answer: Tensor = unet(
            noised.x.to(dtype),
            self.path.index(noised.t).clamp(min=0),
            encoder_hidden_states=batch.conditions["prompt_embeds"].to(dtype),
            return_dict=False,
            **self.told(batch, dtype),
        )[0]
        return self.meant(answer, noised)


def size_ids(batch: Batch, last: Tensor | None = None) -> Tensor:
    """The size of a picture's file, where the resized one was cropped, and what was left, or ``last`` in its place.

    (B, 4 + L) float32, for a ``last`` of (B, L).
    """
    import torch

    told = (batch.extras["original_size"], batch.extras["crop"], batch.extras["target_size"] if last is None else last)
    return torch.cat([one.float() for one in told], dim=1)


def weight_type(denoiser: nn.Module) -> torch.dtype:
    """The type that a network computes in, also where most of its weights are quantized."""
    return next(one.dtype for one in denoiser.parameters() if one.is_floating_point() and one.dtype.itemsize > 1)


def _parts(name: str, unet: AdapterFormat, stack: TextStack) -> Iterator[Part]:
    """The shares of the U-Net and of the text encoders in an adapter file of this format."""
    from st.model.files.format_parts import Part
    from st_sdxl.files import DOTTED, UNET

    if name == "diffusers":
        return stack.parts("diffusers", Part("unet.", "", ("unet.",), unet))
    return stack.parts("kohya", Part("unet.", "", (f"{UNET}_", *DOTTED), unet))
