"""QwenImage: Qwen-Image as diffusers has it, asked the way its pipelines ask it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

from st import BlockGroup, GeometryRule, StError, TokenStream
from st.diffusion.path import straight
from st.diffusion.target import velocity
from st.model.adapters.references import References, shown_latents
from st.model.pipelines.packing import EDGE, pack, token_count, unpack
from st.model.pipelines.pipeline_codec import StillCodec
from st.model.pipelines.pipeline_family import PipelineFamily
from st.model.pipelines.schedule import scheduled_shift
from st_qwen_image.flavours import FLAVOURS, TARGETS, TOKENS, QwenImageOptions

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from st import Batch, Encoder, Geometry, Noised, Shot
    from st.model.adapters.architecture import Architecture
    from st.model.files.formats import AdapterFormat

TEXT, MASK = "prompt_embeds", "prompt_embeds_mask"


class QwenImage(PipelineFamily[QwenImageOptions]):
    """Qwen-Image: from text, and editing one picture or several.

    Time is the model's own, 0 for clean and 1 for noise, and its answer is noise - clean.
    """

    Options: ClassVar[type[QwenImageOptions]] = QwenImageOptions
    encodes = (TEXT, MASK)
    trims: Mapping[str, str] = {TEXT: MASK}
    guidance = "true_cfg_scale"
    one_length = False
    codec_class = StillCodec
    geometry = GeometryRule(multiple=16)
    path = staticmethod(straight)
    target = staticmethod(velocity)
    full_precision = ("img_in", "txt_in", "norm_out.linear", "proj_out")

    def __init__(self, options: QwenImageOptions) -> None:
        super().__init__(options.model_copy(update={"checkpoint": options.checkpoint or options.published.repository}))
        self.pipeline = options.published.pipeline

    def check_files(self) -> None:
        super().check_files()
        if self.folder.is_here():
            self._check_flavour()

    def check(self) -> None:
        super().check()
        self._check_flavour()

    def text_encoders(self) -> Sequence[Encoder]:
        if not self.options.published.edits:
            return super().text_encoders()
        from st.model.pipelines.pipeline_text import Prompting
        from st_qwen_image.seeing import EditText

        self.check()
        without = (self.denoiser, self.autoencoder, *self.unused)
        prompting = Prompting(self._pipeline_class(), without, self.encodes, self.trims, {})
        return (EditText(self.folder, prompting, self.options.text_precision, self.options.published.sight),)

    def references(self) -> References | None:
        """The flavours that edit are shown pictures: one, or several."""
        return References(at_most=self.options.published.most) if self.options.published.edits else None

    def prompt_arguments(self) -> Mapping[str, Any]:
        return {} if self.options.published.edits else {"max_sequence_length": self.options.max_tokens or TOKENS}

    def render_arguments(self, geometry: Geometry) -> Mapping[str, Any]:
        # The pipeline cuts off embeddings that it is given, too.
        return self.prompt_arguments()

    def tokens(self, latents: Tensor) -> int:
        return token_count(latents)

    def predict(self, denoiser: nn.Module, noised: Noised, batch: Batch) -> Tensor:
        import torch

        dtype = next(one for one in denoiser.parameters() if one.is_floating_point()).dtype
        shown = (noised.x, *shown_latents(batch.extras))
        shapes = [(1, one.shape[-2] // EDGE, one.shape[-1] // EDGE) for one in shown]
        prediction: Tensor = denoiser(
            hidden_states=torch.cat([pack(one).to(dtype) for one in shown], dim=1),
            encoder_hidden_states=batch.conditions[TEXT].to(dtype),
            encoder_hidden_states_mask=batch.conditions.get(MASK),
            timestep=noised.t,
            img_shapes=[shapes] * len(noised.x),
            return_dict=False,
        )[0]
        height, width = noised.x.shape[-2:]
        return unpack(prediction[:, : self.tokens(noised.x)], height, width)

    def guide(self, wanted: Tensor, against: Tensor, strength: float) -> Tensor:
        """Plain guidance, with every token brought back to the length that it has in the wanted prediction."""
        height, width = wanted.shape[-2:]
        plain, guided = pack(wanted), pack(against + strength * (wanted - against))
        return unpack(guided * (plain.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True)), height, width)

    def time_shift(self, tokens: int) -> float:
        return scheduled_shift(self._scheduler, tokens)

    def adapter_targets(self) -> Sequence[str]:
        return TARGETS[self.options.targets]

    def adapter_formats(self) -> Mapping[str, AdapterFormat]:
        from st.model.files.formats import comfyui_format, kohya_format
        from st.model.files.peft_layout import diffusers_format
        from st.model.files.readers import MUSUBI

        # ComfyUI and kohya's tools call the layers as diffusers does.
        return {
            "diffusers": diffusers_format(self.denoiser),
            "comfyui": comfyui_format(),
            "kohya": kohya_format(self.module_paths, reader=MUSUBI),
        }

    def architecture(self) -> Architecture:
        from st.model.adapters.architecture import Architecture

        base = "qwen_image_edit" if self.options.published.edits else "qwen_image"
        makers = "https://github.com/QwenLM/Qwen-Image"
        return Architecture(self.options.published.name, makers, base, "networks.lora_qwen_image")

    def blocks(self) -> Sequence[BlockGroup]:
        # They return (text, picture).
        return (BlockGroup("transformer_blocks", TokenStream(returned=1, select=_keep_picture_rows)),)

    def render(self, denoiser: nn.Module, shot: Shot) -> Tensor:
        if self.options.published.edits:
            raise StError(
                f"{self.options.flavour} draws nothing without a picture to edit",
                fix="give the prompt one: references = [...]",
            )
        return super().render(denoiser, shot)

    @classmethod
    def tiny(cls, directory: Path) -> Self:
        from st_qwen_image.tiny import write_tiny

        write_tiny(directory)
        return cls(QwenImageOptions(checkpoint=str(directory), text_precision="fp32"))

    def _check_flavour(self) -> None:
        self.require_flavour(self.options.flavour, {name: one.pipeline for name, one in FLAVOURS.items()})

    @cached_property
    def _scheduler(self) -> Mapping[str, Any]:
        return self.folder.config("scheduler")


def _keep_picture_rows(arguments: Mapping[str, Any], keep: Tensor) -> dict[str, Any]:
    """Rotary tables are the picture's, (S, D), and the text's; modulation by reference or not is (B, S)."""
    picture, text = arguments["image_rotary_emb"]
    index = arguments.get("modulate_index")
    return {
        "image_rotary_emb": (picture[keep], text),
        "modulate_index": None if index is None else index[:, keep],
    }
