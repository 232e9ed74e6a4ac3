"""PipelineFamily: a family whose parts come out of a diffusers pipeline."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from pydantic import Field

from st.errors import StError
from st.importing import importing
from st.model.checkpoint.checkpoint_folder import CheckpointFolder, read_json
from st.model.checkpoint.networks import check_config, load_network
from st.model.checkpoint.quiet import quietly
from st.model.checkpoint.weights import Weights
from st.model.collate import pad_alike
from st.model.family import ModelFamily
from st.model.pipelines.pipeline_codec import PipelineCodec
from st.options import Options
from st.spelling import listed

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from st.data.encoder import Encoder, LatentCodec
    from st.data.geometry import Geometry
    from st.model.files.formats import AdapterFormat
    from st.model.shot import OnStep, Shot


class PipelineOptions(Options):
    """Where a model is, and how its frozen parts are run."""

    checkpoint: str
    """Folder in diffusers' layout (with model_index.json), or a repository on the hub as owner/name."""
    revision: str = ""
    """Branch, tag or commit of a repository on the hub. Empty: its main branch."""
    variant: str = ""
    """Which weights to read where a checkpoint holds several, such as "fp16"."""
    text_precision: Literal["fp32", "bf16"] = "bf16"
    """Precision of the text encoders."""
    autoencoder_precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the autoencoder, when it encodes. Many overflow in fp16; that stops the run and is said."""
    latents: Literal["mode", "sample"] = "mode"
    """What is taken of the autoencoder's answer: the likeliest value, or a sample that only the picture decides."""
    denoiser: str = ""
    """Where the denoiser is if not in the checkpoint: a folder, a repository on the hub, or a .safetensors file, which
    may be one of a repository: owner/name/file.safetensors."""
    shard_gigabytes: float = Field(default=10.0, gt=0)
    """Largest file of the denoiser's weights, in GB, where all of them are saved; more go into several files."""
    denoiser_subfolder: str | None = None
    """Folder of the denoiser in there, "" for the top. Unset: the folder that it has in a whole checkpoint."""


P = TypeVar("P", bound=PipelineOptions)


class PipelineFamily(ModelFamily[P]):
    """A family that diffusers has a pipeline for: text encoders, codec, denoiser and previews are the pipeline's own.

    A subclass states data and writes ``tokens``, ``predict`` and ``adapter_targets``. Its conditions have the names of
    the pipeline's arguments, so that the pipeline can be called with them.
    """

    Options: ClassVar[type[Options]] = PipelineOptions
    pipeline: str
    """Name of the pipeline's class in diffusers; of the instance, where options decide it."""
    denoiser: str = "transformer"
    """Component that learns; of the instance, where options decide it."""
    autoencoder: ClassVar[str] = "vae"
    """Component that turns pixels into latents."""
    unused: ClassVar[Sequence[str]] = ("image_encoder", "feature_extractor", "safety_checker")
    """Components that neither training nor previews need."""
    codec_class: ClassVar[type[PipelineCodec]] = PipelineCodec
    """Overridden where an autoencoder has arithmetic of its own."""
    encodes: Sequence[str | None] = ("prompt_embeds", None)
    """A name for each value that the pipeline's ``encode_prompt`` returns; None for one that is not kept. Of the
    instance, where options decide it; so are ``encodes_negative`` and ``trims``."""
    encodes_negative: Sequence[str | None] = ()
    """The same names for what ``encode_prompt`` returns of a negative prompt, where the pipeline reads that otherwise
    than a prompt, without its system prompt for instance; dropped captions are read likewise. Empty: all alike."""
    trims: Mapping[str, str] = MappingProxyType({})
    """By name, the mask among them that says which of its rows are real; padding is not kept."""
    guidance: ClassVar[str] = "guidance_scale"
    """The pipeline's argument for the strength of guidance."""
    one_length: ClassVar[bool] = True
    """Whether the pipeline takes a text and its negative at one length only, so that the shorter is padded."""

    def __init__(self, options: P) -> None:
        super().__init__(options)
        self.folder = CheckpointFolder(options.checkpoint, options.revision, options.variant)
        self._renderer: Any = None

    def check_files(self) -> None:
        """Raises StError where the checkpoint or the denoiser is on this machine and cannot be this family's."""
        components = self.folder.components() if self.folder.is_here() else None
        if components is not None and self.denoiser not in components:
            raise self._foreign("checkpoint", f"it has no {self.denoiser!r}; it names {listed(sorted(components))}")
        weights = self._weights()
        if weights is not None and weights.is_here() and not weights.is_file:
            found = read_json(weights.folder() / "config.json").get("_class_name")
            if components is not None and found != components[self.denoiser]:
                raise self._foreign("denoiser", f"it is a {found}; {components[self.denoiser]} is needed")

    def prompt_arguments(self) -> Mapping[str, Any]:
        """Arguments of ``encode_prompt`` that differ from the pipeline's own, such as ``max_sequence_length``."""
        return {}

    def render_arguments(self, geometry: Geometry) -> Mapping[str, Any]:
        """Further arguments of the pipeline's call when it renders."""
        return {}

    def schedule_settings(self) -> Mapping[str, Any]:
        """Settings of the pipeline's scheduler that training changes: previews and saved checkpoints have them."""
        return {}

    def codec(self) -> LatentCodec:
        self.check()
        return self.codec_class(self.folder, self.autoencoder, self.options.autoencoder_precision, self.options.latents)

    def text_encoders(self) -> Sequence[Encoder]:
        from st.model.pipelines.pipeline_text import PipelineText, Prompting

        self.check()
        prompting = Prompting(
            self._pipeline_class(),
            (self.denoiser, self.autoencoder, *self.unused),
            self.encodes,
            self.trims,
            self.prompt_arguments(),
            self.encodes_negative,
        )
        return (PipelineText(self.folder, prompting, self.options.text_precision),)

    def load_denoiser(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        self.check()
        weights = self._weights()
        if weights is None:
            folder = self.folder.root([self.denoiser]) / self.denoiser
            denoiser = self._from_folder("checkpoint", folder, dtype, device)
        elif weights.is_file:
            denoiser = self._from_file(weights.file(), dtype)
        else:
            denoiser = self._from_folder("denoiser", weights.folder(), dtype, device)
        return denoiser.to(device).eval()

    def adapter_formats(self) -> Mapping[str, AdapterFormat]:
        from st.model.files.peft_layout import diffusers_format

        return {"diffusers": diffusers_format(self.denoiser)}

    def module_paths(self) -> list[str]:
        """Every module path of the denoiser, found without its weights."""
        import torch

        weights = self._weights()
        if weights is None or weights.is_file:
            kind, config = self._denoiser_class(), self.folder.config(self.denoiser)
            check_config(self.folder.root([]) / self.denoiser, f"model.checkpoint = {self.folder.location!r}")
        else:
            # The folder says what it is, so nothing else of the model has to be there.
            check_config(weights.folder(), f"model.denoiser = {weights.location!r}")
            config = read_json(weights.folder() / "config.json")
            kind = self._class_of(str(config.get("_class_name")))
        with torch.device("meta"):
            denoiser = kind.from_config(dict(config))
        return [path for path, _ in denoiser.named_modules()]

    def save_checkpoint(self, denoiser: nn.Module, directory: Path) -> None:
        import shutil

        self.folder.copy(directory, without=self.denoiser)
        save: Any = denoiser
        largest = max(1, round(self.options.shard_gigabytes * 1e9))
        with quietly():
            save.save_pretrained(directory / self.denoiser, safe_serialization=True, max_shard_size=largest)
        if self.schedule_settings():
            # What was copied may be a hard link to the original, which writing would change.
            shutil.rmtree(directory / "scheduler")
            self._rendering().scheduler.save_pretrained(directory / "scheduler")

    def render(self, denoiser: nn.Module, shot: Shot) -> Tensor:
        """What the pipeline gives whoever loads the result: (1, 3, [F,] H, W) in [0, 1], or a sound (1, channels,
        samples) in [-1, 1].

        The denoiser is in eval mode. Where ``trims`` took padding away, a text and its negative get as much of it back
        as gives them one length, which is what most pipelines take (``one_length``).
        """
        import torch
        from torch.nn import Module

        pipeline, geometry = self._rendering(), shot.geometry
        weight = next(one for one in denoiser.parameters() if one.is_floating_point())
        arguments = {
            name: value.to(weight.device, weight.dtype) if value.is_floating_point() else value.to(weight.device)
            for name, value in self._prompts(shot).items()
        }
        wanted = arguments | {
            "height": geometry.height,
            "width": geometry.width,
            "num_frames": geometry.frames,
            "num_inference_steps": shot.steps,
            self.guidance: shot.guidance,
            # A generator of the CPU draws the same noise whatever the device.
            "generator": torch.Generator().manual_seed(shot.seed),
            "callback_on_step_end": _told(shot.on_step),
            # What the oldest pipelines have in its place.
            "callback": lambda index, time, latents: shot.on_step(index + 1),
            "output_type": "pt",
            "return_dict": False,
            **self.render_arguments(geometry),
        }
        if shot.negative is not None:
            # Some have a text as their default, and refuse it beside embeddings.
            wanted["negative_prompt"] = None
        autoencoder = getattr(pipeline, self.autoencoder)
        # Pipelines decode in the precision that they were given embeddings in. diffusers' own ``to`` warns of that.
        Module.to(autoencoder, weight.device, weight.dtype)
        self._put(pipeline, denoiser)
        try:
            pixels = self._draw(pipeline, wanted, shot)
        finally:
            self._put(pipeline, None)
            Module.to(autoencoder, "cpu")
        clip = pixels.transpose(1, 2) if pixels.ndim == 5 else pixels
        return clip.squeeze(2) if clip.ndim == 5 and geometry.frames == 1 else clip

    def _put(self, pipeline: Any, denoiser: nn.Module | None) -> None:
        """Give the pipeline its denoiser, or take it away."""
        pipeline.register_modules(**{self.denoiser: denoiser})

    def _draw(self, pipeline: Any, wanted: Mapping[str, Any], shot: Shot) -> Tensor:
        """What the pipeline gives, told as much of this as it takes."""
        known = inspect.signature(pipeline.__call__).parameters
        pixels: Tensor = pipeline(**{name: value for name, value in wanted.items() if name in known})[0]
        return pixels

    def _prompts(self, shot: Shot) -> dict[str, Tensor]:
        """The text and its negative under the pipeline's names."""
        if shot.negative is None:
            return self._conditions(shot.conditions, "")
        wanted, against = pad_alike(shot.conditions, shot.negative, self.trims if self.one_length else ())
        return self._conditions(wanted, "") | self._conditions(against, "negative_")

    def _conditions(self, conditions: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """Conditions under the pipeline's names, with the masks that were trimmed away."""
        found = {f"{prefix}{name}": value for name, value in conditions.items() if name in self.encodes}
        for name, mask in self.trims.items():
            rows = conditions[name]
            present = conditions.get(f"{name}_mask")
            found[f"{prefix}{mask}"] = rows.new_ones(rows.shape[:2]).long() if present is None else present.long()
        return found

    def _rendering(self) -> Any:
        """The pipeline without text encoders and denoiser, kept from one preview to the next; on the CPU in between."""
        if self._renderer is None:
            import torch

            from st.model.pipelines.pipeline_text import load_pipeline

            self.check()
            self._renderer = load_pipeline(self._pipeline_class(), self.folder, [self.autoencoder], torch.float32)
            self._renderer.set_progress_bar_config(disable=True)
            if settings := self.schedule_settings():
                scheduler = self._renderer.scheduler
                self._renderer.scheduler = type(scheduler).from_config(scheduler.config, **settings)
        return self._renderer

    def _weights(self) -> Weights | None:
        """Where the denoiser is, if not in the checkpoint."""
        options = self.options
        if not options.denoiser:
            return None
        subfolder = self.denoiser if options.denoiser_subfolder is None else options.denoiser_subfolder
        return Weights(options.denoiser, subfolder, variant=options.variant)

    def _from_folder(self, option: str, folder: Path, dtype: torch.dtype, device: torch.device) -> nn.Module:
        kind = self._denoiser_class()
        found = read_json(folder / "config.json").get("_class_name")
        if found != kind.__name__:
            raise self._foreign(option, f"it is a {found}; {kind.__name__} is needed")
        location = self.options.denoiser if option == "denoiser" else self.folder.location
        what = f"model.{option} = {location!r}: its {self.denoiser!r}"
        denoiser: nn.Module = load_network(kind, folder, what, dtype=dtype, variant=self.options.variant, device=device)
        return denoiser

    def _from_file(self, file: Path, dtype: torch.dtype) -> nn.Module:
        """A single file as its makers or diffusers wrote it; what it belongs into is the checkpoint's denoiser."""
        kind = self._denoiser_class()
        if not hasattr(kind, "from_single_file"):
            raise self._foreign("denoiser", f"diffusers reads no {kind.__name__} from a single file, but from folders")
        # Fetched here, so that diffusers finds the settings on this machine.
        self.folder.config(self.denoiser)
        root = self.folder.root([])
        try:
            denoiser: nn.Module = kind.from_single_file(
                str(file), config=str(root), subfolder=self.denoiser, dtype=dtype, local_files_only=True
            )
        except (LookupError, ValueError, RuntimeError) as error:
            raise self._foreign("denoiser", f"{type(error).__name__}: {error}".splitlines()[0]) from error
        absent = [name for name, parameter in denoiser.named_parameters() if parameter.is_meta]
        if absent:
            raise self._foreign("denoiser", f"{len(absent)} of its weights are not there, such as {absent[0]!r}")
        return denoiser

    def _pipeline_class(self) -> Any:
        return self._class_of(self.pipeline)

    def _denoiser_class(self) -> Any:
        return self._class_of(self.folder.components()[self.denoiser])

    def _class_of(self, name: str) -> Any:
        with importing():
            import diffusers

            return getattr(diffusers, name)

    def check(self) -> None:
        """Raises StError where the checkpoint is of another family: its denoiser is no class of this pipeline's."""
        components = self.folder.components()
        found = components.get(self.denoiser)
        if found is None or found not in self._expected():
            name = self.folder.index().get("_class_name")
            made_for = f"a {name}" if name else "a pipeline without a name"
            raise self._foreign(
                "checkpoint", f"it holds {made_for} with {found or 'no ' + self.denoiser}; {self.pipeline} is needed"
            )

    def require_flavour(self, flavour: str, pipelines: Mapping[str, str]) -> None:
        """Raises StError for a checkpoint of another flavour's pipeline, which texts are put to in another way.

        flavour: the one that was chosen. pipelines: the class of each flavour's.
        """
        found = str(self.folder.index().get("_class_name"))
        fitting = [name for name, pipeline in pipelines.items() if pipeline == found]
        if fitting and found != self.pipeline:
            raise StError(
                f"model.checkpoint = {self.folder.location!r} is not of the flavour {flavour!r}",
                why=f"it holds a {found}; {self.pipeline} is needed",
                fix=f"set model.flavour to {' or '.join(map(repr, fitting))}, or name another checkpoint",
            )

    def _expected(self) -> str:
        """The classes that the pipeline's denoiser may have."""
        return str(inspect.signature(self._pipeline_class().__init__).parameters[self.denoiser].annotation)

    def _foreign(self, option: str, why: str) -> StError:
        location = self.options.denoiser if option == "denoiser" else self.folder.location
        return StError(
            f"model.{option} = {location!r} is not a model of this family",
            why=why,
            fix=f"name another {option}, or the plugin of that model's family",
        )


def _told(on_step: OnStep) -> Callable[[Any, int, Any, Mapping[str, Any]], Mapping[str, Any]]:
    """A pipeline's own callback, which changes nothing."""

    def call(pipeline: Any, index: int, time: Any, tensors: Mapping[str, Any]) -> Mapping[str, Any]:
        on_step(index + 1)
        return {}

    return call
