"""Stable Diffusion XL: a U-Net that hears two text encoders and is told how its pictures were cropped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from st import BlockGroup, Encoder, GeometryRule, Problem, StError, TokenStream, hookimpl
from st.diffusion.path import unmix
from st.diffusion.target import epsilon, v, velocity
from st.model.pipelines.pipeline_family import PipelineFamily
from st_sdxl.captions import read_tokens
from st_sdxl.checkpoint import check_checkpoint
from st_sdxl.settings import REPOSITORIES, TARGETS, SdxlOptions

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from st import Batch, Geometry, Noised, Shot
    from st.diffusion.path import DiscretePath
    from st.model.adapters.architecture import Architecture
    from st.model.files.format_parts import Part
    from st.model.files.formats import AdapterFormat
    from st.model.pipelines.text_stack import TextStack
    from st.settings.config import RunConfig

HALVES = ("down_blocks", "mid_block", "up_blocks")
"""Parts of the U-Net, in the order in which they run."""


UNCONDITIONAL_SCORE = 2.5
"""The score that the refiner's pipeline tells its unconditional branch (negative_aesthetic_score)."""


class Sdxl(PipelineFamily[SdxlOptions]):
    """Stable Diffusion XL: base and refiner.

    Podell et al. 2023, arXiv:2307.01952. The U-Net is told the size of a picture's file, where the resized picture was
    cropped, and what was left; also where the caption was dropped, as the pipeline tells its unconditional branch.
    """

    Options: ClassVar[type[SdxlOptions]] = SdxlOptions
    path: DiscretePath
    geometry = GeometryRule(multiple=8)
    pipeline = "StableDiffusionXLPipeline"
    denoiser = "unet"
    encodes = ("prompt_embeds", None, "pooled_prompt_embeds", None)
    drops_tokens = False
    full_precision = ("conv_in", "conv_out", "linear_1", "linear_2")

    def __init__(self, options: SdxlOptions) -> None:
        location = options.checkpoint or REPOSITORIES[options.flavour]
        super().__init__(options.model_copy(update={"checkpoint": location}))
        self.says = v if options.prediction == "v" else epsilon
        self.path = options.path()
        self.target = velocity if options.flow else self.says
        self.defaults = {"density": options.density()} if options.density() else {}
        if options.is_refiner:
            self.pipeline = "StableDiffusionXLImg2ImgPipeline"
        self._modules: list[str] = []

    @hookimpl
    def st_check(self, config: RunConfig) -> Iterable[Problem]:
        """What cannot go with a stage: its times are a density's, and another density or a shift would move them."""
        wanted = self.options.density()
        if not wanted:
            return
        section = f"model.stage = {self.options.stage!r}"
        chosen = {"kind": config.density.kind, **config.density.options.model_dump()}
        if any(chosen.get(name) != value for name, value in wanted.items()):
            yield Problem("density", f"[density] takes the place of {section}.", fix="Delete one of the two.")
        if config.shift.kind == "static":
            yield Problem("shift", f"[shift] moves times out of {section}.", fix="Delete one of the two.")

    def text_encoders(self) -> Sequence[Encoder]:
        from st_sdxl.captions import EncodedCaptions, MarkedCaptions

        (encoder,) = super().text_encoders()
        if self.options.train_text:
            return (MarkedCaptions(self.text_stack().captions(encoder), zeros=False),)
        return (EncodedCaptions(encoder, self._zeros()),)

    def load_denoiser(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        unet = super().load_denoiser(device, dtype)
        return self.text_stack().join(unet, device, dtype) if self.options.train_text else unet

    def text_stack(self) -> TextStack:
        """Both text encoders, where they learn too."""
        from st.model.pipelines.text_stack import TextStack

        tokenizers = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
        return TextStack(self.folder, self.denoiser, tokenizers, partial(read_tokens, zeros=self._zeros()))

    def tokens(self, latents: Tensor) -> int:
        # The outermost blocks only convolve; the first that attend see every second latent of each edge.
        return -(-latents.shape[-2] // 2) * -(-latents.shape[-1] // 2)

    def predict(self, denoiser: nn.Module, noised: Noised, batch: Batch) -> Tensor:
        from st.model.pipelines.learning_text import predict_with_text

        return predict_with_text(self._answer, denoiser, noised, batch)

    def adapter_targets(self) -> Sequence[str]:
        return (*TARGETS[self.options.targets], *(self.text_stack().targets if self.options.train_text else ()))

    def adapter_formats(self) -> Mapping[str, AdapterFormat]:
        from st.model.files.format_parts import Parts
        from st.model.files.peft_layout import diffusers_format
        from st_sdxl.files import UnetLayers

        names = {"diffusers": diffusers_format("unet")} | {
            name: UnetLayers(self.module_paths, original=name == "kohya") for name in ("kohya", "comfyui")
        }
        if not self.options.train_text:
            return names
        return {name: Parts(partial(self._parts, name, unet), unet) for name, unet in names.items()}

    def architecture(self) -> Architecture:
        from st.model.adapters.architecture import Architecture

        name = "refiner" if self.options.is_refiner else "base"
        says: Literal["epsilon", "v"] = "v" if self.options.prediction == "v" else "epsilon"
        makers = "https://github.com/Stability-AI/generative-models"
        version = self.options.flavour.partition("-")[2].replace(".", "-")
        return Architecture(f"stable-diffusion-xl-v1-{name}", makers, f"sdxl_{name}_v{version}", "networks.lora", says)

    def module_paths(self) -> list[str]:
        if not self._modules:
            self._modules = super().module_paths()
        return self._modules

    def blocks(self) -> Sequence[BlockGroup]:
        # Convolutions between them need every token in its place.
        whole = TokenStream(droppable=False)
        inside = "unet." if self.options.train_text else ""
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
        if self.options.train_text:
            raise StError("model.train_text does not go with a control network", fix="set model.train_text to false")
        unet: Any = denoiser
        network: nn.Module = ControlNetModel.from_unet(unet)
        return network

    def controlled(self, network: nn.Module, arguments: Mapping[str, Any], shown: Tensor) -> Mapping[str, Any]:
        """The control network's residuals. shown: (B, 3, H, W) uint8."""
        sample, dtype = arguments["sample"], _dtype(network)
        down, middle = network(
            sample.to(dtype),
            arguments["timestep"],
            encoder_hidden_states=arguments["encoder_hidden_states"].to(dtype),
            controlnet_cond=shown.to(dtype) / 255,
            added_cond_kwargs=arguments["added_cond_kwargs"],
            return_dict=False,
        )
        return {
            "down_block_additional_residuals": [one.to(sample.dtype) for one in down],
            "mid_block_additional_residual": middle.to(sample.dtype),
        }

    def schedule_settings(self) -> Mapping[str, Any]:
        return self.options.scheduler()

    def render_arguments(self, geometry: Geometry) -> Mapping[str, Any]:
        import torch

        arguments: dict[str, Any] = {"guidance_rescale": 0.7} if self.options.zero_terminal_snr else {}
        if self.options.is_refiner:
            # A refiner's pipeline begins from a picture; from this one at full strength, it begins from noise.
            nothing = torch.zeros(1, 4, geometry.height // 8, geometry.width // 8)
            arguments |= {"image": nothing, "strength": 1.0}
        return arguments

    def render(self, denoiser: nn.Module, shot: Shot) -> Tensor:
        import torch

        from st.model.pipelines.learning_text import plain, read_text

        negative = None if shot.negative is None else read_text(denoiser, shot.negative)
        unet = plain(denoiser)
        pixels = super().render(unet, replace(shot, conditions=read_text(denoiser, shot.conditions), negative=negative))
        if not torch.isfinite(pixels).all():
            raise StError(
                "the picture is not finite",
                why="the autoencoder overflows in float16" if _dtype(unet) == torch.float16 else "",
                fix='set precision to "bf16", or use an autoencoder made for float16',
            )
        return pixels

    def save_checkpoint(self, denoiser: nn.Module, directory: Path) -> None:
        from st.model.pipelines.learning_text import plain

        super().save_checkpoint(plain(denoiser), directory)
        if self.options.train_text:
            self.text_stack().save(denoiser, directory)

    @classmethod
    def tiny(cls, directory: Path) -> Self:
        from st_sdxl.tiny import write

        write(directory)
        return cls(cls.Options(checkpoint=str(directory)))

    def check(self) -> None:
        super().check()
        check_checkpoint(self.folder, self.options)

    def _answer(self, unet: nn.Module, noised: Noised, batch: Batch) -> Tensor:
        conditions, dtype = batch.conditions, _dtype(unet)
        x, index, ids = noised.x.to(dtype), self.path.index(noised.t).clamp(min=0), self._time_ids(batch)
        pooled = conditions["pooled_prompt_embeds"].to(dtype)
        answer: Tensor = unet(
            x,
            index,
            encoder_hidden_states=conditions["prompt_embeds"].to(dtype),
            added_cond_kwargs={"text_embeds": pooled, "time_ids": ids},
            return_dict=False,
        )[0]
        if not self.options.flow:
            return answer
        here = self.path(noised.t)
        clean, noise = unmix(noised.x, here, answer.float(), self.says(here))
        return self.target(here).of(clean, noise)

    def _time_ids(self, batch: Batch) -> Tensor:
        """What the U-Net is told beside the caption, (B, 6), or (B, 5) for a refiner."""
        import torch

        told = [batch.extras["original_size"], batch.extras["crop"]]
        if self.options.is_refiner:
            captioned = batch.conditions["captioned"].float()
            told.append(captioned * self.options.aesthetic_score + (1 - captioned) * UNCONDITIONAL_SCORE)
        else:
            told.append(batch.extras["target_size"])
        return torch.cat([one.float() for one in told], dim=1)

    def _zeros(self) -> bool:
        """Whether the pipeline's users get zeros where they give no negative prompt."""
        return bool(self.folder.index().get("force_zeros_for_empty_prompt", True))

    def _parts(self, name: str, unet: AdapterFormat) -> Iterator[Part]:
        """The shares of the U-Net and of both text encoders in an adapter file of this format."""
        from st.model.files.format_parts import Part
        from st_sdxl.files import DOTTED, UNET

        if name == "diffusers":
            return self.text_stack().parts("diffusers", Part("unet.", "", ("unet.",), unet))
        return self.text_stack().parts("kohya", Part("unet.", "", (f"{UNET}_", *DOTTED), unet))


def _dtype(denoiser: nn.Module) -> torch.dtype:
    return next(one.dtype for one in denoiser.parameters() if one.is_floating_point() and one.dtype.itemsize > 1)
