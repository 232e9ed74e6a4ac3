"""Wan: 2.1 and 2.2 as diffusers has them, asked the way their pipelines ask them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from st import BlockGroup, GeometryRule, Problem, StError, TokenStream, hookimpl
from st.diffusion.path import straight
from st.diffusion.target import velocity
from st.model.adapters.references import References
from st.model.pipelines.pipeline_family import PipelineFamily
from st_wan.conditions import (
    CONTROL,
    FIRST_FRAME,
    IMAGE,
    ControlClip,
    FirstPicture,
    ImageEmbeds,
    WanCodec,
    begun,
    first_at_zero,
    spread,
)
from st_wan.flavours import ATTENTION, FEED_FORWARD, HIGH, LOW, MODULES, SEEN, Name, WanOptions
from st_wan.text import TEXT, Trimmed, padded

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from st import Batch, Encoder, LatentCodec, Noised, Run, Shot
    from st.diffusion.objective import Objective
    from st.model.adapters.architecture import Architecture
    from st.model.files.formats import AdapterFormat
    from st.progress import Outcome
    from st.randomness import Draws
    from st.settings.config import RunConfig
    from st_wan.experts import Question

EDGE = 2
"""Latents along one edge of a token."""
TIMES = 1000.0
"""The denoiser's number for pure noise."""
SOONEST = 1e-6
"""What a time is divided by at least."""
SHOWN = "reference_"
"""What the reference of a prompt is named after, in ``Batch.extras``."""


class Wan(PipelineFamily[WanOptions]):
    """Wan 2.1 and 2.2: clips and pictures from text, from a first frame, and VACE.

    Time is 1000 t, and the answer is noise - clean.
    """

    Options: ClassVar[type[WanOptions]] = WanOptions
    unused = ("image_encoder", "image_processor", "transformer", "transformer_2")
    path = staticmethod(straight)
    target = staticmethod(velocity)
    full_precision = ("patch_embedding", "linear_1", "linear_2", "time_proj", "proj_out")

    def __init__(self, options: WanOptions) -> None:
        super().__init__(options.model_copy(update={"checkpoint": options.checkpoint or options.published.repository}))
        self.pipeline = options.published.pipeline
        self.denoiser = options.trained[0]
        self.geometry = GeometryRule(multiple=options.published.multiple, frames_modulus=4)
        self._other: nn.Module | None = None
        self._is_near = False

    def codec(self) -> LatentCodec:
        self.check()
        return self._codec()

    def text_encoders(self) -> Sequence[Encoder]:
        from st.model.pipelines.pipeline_text import Prompting

        self.check()
        kind = self._pipeline_class()
        prompting = Prompting(kind, (self.autoencoder, *self.unused), self.encodes, self.trims, self.prompt_arguments())
        text = Trimmed(self.folder, prompting, self.options.text_precision)
        return (text, ImageEmbeds(self.folder, self.pipeline)) if self.options.published.sees else (text,)

    def collate(self, encoded: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
        return super().collate([{**entry, TEXT: padded(entry[TEXT])} for entry in encoded])

    def references(self) -> References | None:
        """A picture that the clip of a prompt begins with, or the clip that VACE is controlled by."""
        if self.options.published.given == "control" and not self.options.starts:
            return References(ControlClip(self._codec()), at_least=0, at_most=1)
        return References(self.first_picture(), at_least=0, at_most=1) if self.options.starts else None

    def first_picture(self) -> FirstPicture:
        """Makes of a picture what the denoiser is given of a clip that begins with it."""
        eye = ImageEmbeds(self.folder, self.pipeline) if self.options.published.sees else None
        return FirstPicture(self._codec(), eye)

    def load_denoiser(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        if len(self.options.trained) == 1:
            from st_wan.checks import refuse_others

            denoiser = super().load_denoiser(device, dtype)
            refuse_others(denoiser, self.folder, self.options)
            return denoiser
        from st_wan.experts import Experts

        return Experts(*(self._alone(name).load_denoiser(device, dtype) for name in ("high", "low"))).eval()

    def tokens(self, latents: Tensor) -> int:
        frames, height, width = latents.shape[-3:]
        return frames * (height // EDGE) * (width // EDGE)

    def predict(self, denoiser: nn.Module, noised: Noised, batch: Batch) -> Tensor:
        import torch

        question = self._question(noised, batch)
        if not self.options.published.experts:
            answer = question.put_to(denoiser)
        else:
            from st_wan.experts import answer_by_expert

            answer = answer_by_expert(question, self.is_noisy(noised.t), partial(self._expert, denoiser))
        first, given = self._first_frame(noised.x, batch)
        if self.options.published.given != "first" or first is None or noised.t.ndim > 1:
            return answer
        # Asked at one time for all frames: straight to what is known, so that a sampler arrives at it.
        known = (noised.x[:, :, :1] - first) / spread(noised.t).clamp(min=SOONEST)
        return torch.cat([torch.where(spread(given), known.to(answer), answer[:, :, :1]), answer[:, :, 1:]], dim=2)

    def times(self, t: Tensor, batch: Batch, draws: Draws | None) -> Tensor:
        """A first frame that is given has the time 0, where tokens have times of their own."""
        first, shown = self._given_frame(batch)
        return t if first is None else first_at_zero(t, shown, batch.latents.shape[2])

    def start(self, noise: Tensor, batch: Batch) -> Tensor:
        first, shown = self._given_frame(batch)
        return noise if first is None else begun(noise, first, shown)

    def time_shift(self, tokens: int) -> float:
        scheduler = self._scheduler
        return self.options.flow_shift or float(scheduler.get("flow_shift", scheduler.get("shift", 1.0)))

    def schedule_settings(self) -> Mapping[str, Any]:
        if self.options.flow_shift is None:
            return {}
        return {"flow_shift" if "flow_shift" in self._scheduler else "shift": self.options.flow_shift}

    def adapter_targets(self) -> Sequence[str]:
        seen = SEEN if self.options.published.sees else ()
        return (*ATTENTION, *seen, *(FEED_FORWARD if self.options.targets == "attention+ffn" else ()))

    def adapter_formats(self) -> Mapping[str, AdapterFormat]:
        from st_wan.formats import formats

        return formats(both=len(self.options.trained) == 2)

    def architecture(self) -> Architecture:
        from st.model.adapters.architecture import Architecture

        version = self.options.published.version
        return Architecture(f"wan{version}", f"https://github.com/Wan-Video/Wan{version}", "wan", "networks.lora_wan")

    def blocks(self) -> Sequence[BlockGroup]:
        # Tokens cannot leave VACE's blocks, whose hints are added between them, nor stay away from one expert to the
        # other: their blocks are numbered through, and each sample passes through those of one.
        whole = TokenStream(droppable=False)
        if len(self.options.trained) == 2:
            return tuple(BlockGroup(f"{module}.blocks", whole) for module in MODULES.values())
        if self.options.published.given == "control":
            control = TokenStream(argument="control_hidden_states", returned=1, droppable=False)
            return BlockGroup("vace_blocks", control), BlockGroup("blocks", whole)
        return (BlockGroup("blocks", TokenStream(select=_keep_tokens)),)

    def module_paths(self) -> list[str]:
        if len(self.options.trained) == 1:
            return super().module_paths()
        alone = zip(MODULES.values(), ("high", "low"), strict=True)
        return [f"{module}.{path}" for module, name in alone for path in self._alone(name).module_paths() if path]

    def save_checkpoint(self, denoiser: nn.Module, directory: Path) -> None:
        if len(self.options.trained) == 1:
            super().save_checkpoint(denoiser, directory)
            return
        self._alone("high").save_checkpoint(denoiser.get_submodule(MODULES[HIGH]), directory)
        # What is there may be hard links to the original, which writing would change.
        shutil.rmtree(directory / LOW)
        second: Any = denoiser.get_submodule(MODULES[LOW])
        second.save_pretrained(directory / LOW, safe_serialization=True)

    def render(self, denoiser: nn.Module, shot: Shot) -> Tensor:
        if self.options.needs_picture:
            raise StError("a clip of this model begins with a picture", fix="give the prompt one: references = [...]")
        if not self.options.published.experts:
            return super().render(denoiser, shot)
        mine, other = self.denoiser, LOW if self.denoiser == HIGH else HIGH
        asked, beside = (self._expert(denoiser, name) for name in (mine, other))
        pipeline = self._rendering()
        pipeline.register_modules(**{other: beside})
        try:
            return super().render(asked, shot)
        finally:
            pipeline.register_modules(**{other: None})
            self._put_away()

    def is_noisy(self, t: Tensor) -> Tensor:
        """Whether the expert for much noise is asked at these times, (B,) bool."""
        return t * TIMES >= self._boundary * TIMES

    @hookimpl
    def st_check(self, config: RunConfig) -> Iterable[Problem]:
        """Prompts without the picture that they need, and references where clips bring their own."""
        from st_wan.checks import picture_problems

        return picture_problems(config, self.options)

    @hookimpl
    def st_objective(self, objective: Objective) -> Objective | None:
        """One expert alone is shown the times that it is asked at."""
        if not self.options.published.experts or len(self.options.trained) == 2:
            return None
        from st_wan.experts import Within

        def takes(t: Tensor) -> Tensor:
            return self.is_noisy(t) if self.denoiser == HIGH else ~self.is_noisy(t)

        return replace(objective, density=Within(objective.density, takes))

    @hookimpl
    def st_step(self, run: Run) -> None:
        """Both experts are not trained where their weights are split."""
        if self.options.published.experts and len(self.options.trained) == 2:
            from st_wan.checks import refuse_shared_out

            refuse_shared_out(run)

    @hookimpl
    def st_run_end(self, run: Run, outcome: Outcome) -> None:
        """Beside the adapter of both experts, each one's own, as other programs load them."""
        from st.progress import Outcome as Outcomes
        from st_wan.formats import write_parts

        if len(self.options.trained) == 1 or outcome is not Outcomes.FINISHED or not run.ranks.main:
            return
        parts = {component: module.replace("_", "-") for component, module in MODULES.items()}
        endings = tuple(f"{ending}.safetensors" for ending in parts.values())
        for file in sorted(run.directory.glob("adapter*.safetensors")):
            written = [] if file.name.endswith(endings) else write_parts(file, parts)
            if written:
                run.report.note(f"for other programs: {', '.join(map(str, written))}", kind="export")

    @classmethod
    def tiny(cls, directory: Path, flavour: Name = "t2v-1.3b") -> Self:
        from st_wan.tiny import write_tiny

        write_tiny(directory, flavour)
        return cls(WanOptions(flavour=flavour, checkpoint=str(directory), text_precision="fp32"))

    def _codec(self) -> WanCodec:
        options = self.options
        settings = (self.folder, self.autoencoder, options.autoencoder_precision, options.latents)
        codec = WanCodec(*settings)
        codec.given, codec.starts = options.published.given, options.starts
        codec.frames_per_second = options.published.rate
        return codec

    def _question(self, noised: Noised, batch: Batch) -> Question:
        import torch

        from st.diffusion.layout import to_tokens
        from st_wan.conditions import control_channels, first_frame_mask
        from st_wan.experts import Question

        given = self.options.published.given
        moments = noised.t if noised.t.ndim > 1 else self.times(noised.t, batch, None)
        question = Question(noised.x, moments * TIMES, batch.conditions[TEXT])
        first, _ = self._first_frame(noised.x, batch)
        if given == "padded" and first is not None:
            x = torch.cat([noised.x, first_frame_mask(noised.x), first], dim=1)
            return replace(question, x=x, image=_shown(batch, IMAGE))
        if given == "control":
            control = _shown(batch, CONTROL)
            if control is None:
                raise StError("VACE is asked without its control channels", fix="render it by its own pipeline")
            return replace(question, control=control_channels(control.to(noised.x), self.options.starts))
        if given == "first" and self.options.times == "token":
            frames, height, width = noised.x.shape[-3:]
            grid = (frames, height // EDGE, width // EDGE)
            x, time = self.start(noised.x, batch), to_tokens(question.time, noised.x.shape, grid)
            return replace(question, x=x, time=time)
        return question

    def _given_frame(self, batch: Batch) -> tuple[Tensor | None, Tensor]:
        """As ``_first_frame``, where its tokens have a time of their own; None elsewhere."""
        if self.options.published.given != "first" or self.options.times != "token":
            return None, batch.latents.new_zeros(0)
        return self._first_frame(batch.latents, batch)

    def _first_frame(self, x: Tensor, batch: Batch) -> tuple[Tensor | None, Tensor]:
        """What is given of the first frame, like x, and of which samples, (B,) bool.

        Raises StError where the denoiser cannot do without.
        """
        import torch

        first = _shown(batch, FIRST_FRAME)
        everyone = torch.ones(len(x), dtype=torch.bool, device=x.device)
        if first is None:
            if self.options.published.given == "padded":
                raise StError("this model is asked for a clip without its first frame", fix="name a reference")
            return None, ~everyone
        share = self.options.first_frame
        if share is None or share == 1 or FIRST_FRAME not in batch.extras:
            return first.to(x), everyone
        from st.randomness import Draws

        return first.to(x), Draws(0, batch.indices, x.device).uniform("first_frame") < share

    def _expert(self, denoiser: nn.Module, name: str) -> nn.Module:
        """One of the two. What is not trained is loaded when previews ask for it, and leaves the device afterwards."""
        from st_wan.experts import patch_weight

        if len(self.options.trained) == 2:
            return denoiser.get_submodule(MODULES[name])
        if name == self.denoiser:
            self._put_away()
            return denoiser
        weight = patch_weight(denoiser)
        if self._other is None:
            alone = self._alone("low" if self.options.experts == "high" else "high")
            self._other = alone.load_denoiser(weight.device, weight.dtype).requires_grad_(False)
        if not self._is_near:
            self._is_near = True
            self._other.to(weight.device)
        return self._other

    def _put_away(self) -> None:
        if self._is_near and self._other is not None:
            self._is_near = False
            self._other.to("cpu")

    def _alone(self, expert: str) -> Self:
        """The family of one expert."""
        return type(self)(self.options.model_copy(update={"experts": expert}))

    @cached_property
    def _boundary(self) -> float:
        ratio = self.folder.index().get("boundary_ratio")
        if ratio is None:
            raise StError(
                f"model.checkpoint = {self.options.checkpoint!r} does not say where its experts meet",
                why="there is no boundary_ratio in its model_index.json",
                fix="name a checkpoint of two experts, or the flavour that it is of",
            )
        return float(ratio)

    @cached_property
    def _scheduler(self) -> Mapping[str, Any]:
        return self.folder.config("scheduler")


def _shown(batch: Batch, name: str) -> Tensor | None:
    """A condition of the clip itself, or of a prompt's picture."""
    for extras, key in ((batch.extras, f"{SHOWN}{name}"), (batch.extras, name), (batch.conditions, name)):
        if key in extras:
            return extras[key]
    return None


def _keep_tokens(arguments: Mapping[str, Any], keep: Tensor) -> dict[str, Any]:
    """Rotary tables are (1, S, 1, D); times of tokens (B, S, 6, D)."""
    narrowed: dict[str, Any] = {"rotary_emb": tuple(table[:, keep] for table in arguments["rotary_emb"])}
    if arguments["temb"].ndim == 4:
        narrowed["temb"] = arguments["temb"][:, keep]
    return narrowed
