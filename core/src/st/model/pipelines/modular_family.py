"""ModularFamily: a family that diffusers has as a modular pipeline only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from st.model.checkpoint.checkpoint_folder import MODULAR_INDEX
from st.model.checkpoint.networks import is_wrapped, unwrapped_tokenizer
from st.model.checkpoint.quiet import quietly
from st.model.pipelines.pipeline_family import PipelineFamily, PipelineOptions
from st.model.pipelines.pipeline_text import PipelineText, Prompting

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from st.data.encoder import Encode, Encoder, Input
    from st.model.checkpoint.checkpoint_folder import CheckpointFolder
    from st.model.shot import Shot

P = TypeVar("P", bound=PipelineOptions)


class ModularFamily(PipelineFamily[P]):
    """A family without a ``DiffusionPipeline``: its parts are loaded by class name, from a checkpoint with
    ``modular_model_index.json`` or with the names in ``parts``; texts and previews go through upstream's blocks.

    Everything else is as in ``PipelineFamily``. ``pipeline`` is the modular pipeline's class; ``encodes`` are names of
    what its text block answers, and its later blocks are given them by the same names.
    """

    parts: Mapping[str, str] = MappingProxyType({})
    """The class of each component, where the checkpoint has no index. Each lies in the folder of its name."""
    text_block: ClassVar[str] = "text_encoder"
    """Name of the block that reads a caption; previews are made without it."""
    unwanted_blocks: ClassVar[Sequence[str]] = ()
    """Names of blocks that nothing goes through, such as one that rewrites captions."""
    reads_several: ClassVar[bool] = True
    """Whether the text block takes several captions in one call."""
    answers: ClassVar[str] = "images"
    """What the last block's answer is called."""

    def __init__(self, options: P) -> None:
        super().__init__(options)
        self.folder = replace(self.folder, index_name=MODULAR_INDEX, parts=self.parts)

    def text_encoders(self) -> Sequence[Encoder]:
        self.check()
        block = self._blocks().sub_blocks[self.text_block]
        prompting = Prompting(type(block), self.unused, self.encodes, self.trims, self.prompt_arguments())
        return (ModularText(self.folder, prompting, self.options.text_precision, several=self.reads_several),)

    def _blocks(self) -> Any:
        """All blocks of the pipeline, new."""
        import diffusers

        name = self._pipeline_class().default_blocks_name
        found: Any = getattr(diffusers, name, None) or getattr(diffusers.modular_pipelines, name)
        blocks = found()
        for unwanted in self.unwanted_blocks:
            blocks.sub_blocks.pop(unwanted)
        return blocks

    def _expected(self) -> str:
        found: dict[str, str] = {
            one.name: one.type_hint.__name__ for one in self._blocks().expected_components if one.type_hint
        }
        return found[self.denoiser]

    def _rendering(self) -> Any:
        if self._renderer is None:
            import torch

            self.check()
            blocks = self._blocks()
            blocks.sub_blocks.pop(self.text_block)
            with quietly():
                made = blocks.init_pipeline()
                known = [name for name in (self.autoencoder, "scheduler") if name in self.folder.components()]
                made.update_components(**loaded_parts(self.folder, known, torch.float32))
            made.set_progress_bar_config(disable=True)
            if settings := self.schedule_settings():
                made.scheduler = type(made.scheduler).from_config(made.scheduler.config, **settings)
            self._renderer = made
        return self._renderer

    def _put(self, pipeline: Any, denoiser: nn.Module | None) -> None:
        setattr(pipeline, self.denoiser, denoiser)

    def _draw(self, pipeline: Any, wanted: Mapping[str, Any], shot: Shot) -> Tensor:
        known = pipeline.blocks.input_names
        if hasattr(pipeline, "guider"):
            pipeline.guider = pipeline.guider.new(guidance_scale=shot.guidance)
        given = {name: value for name, value in wanted.items() if name in known}
        with _steps_told(pipeline.scheduler, shot):
            pixels: Tensor = pipeline(**given, output=self.answers)
        return pixels


class ModularText(PipelineText):
    """The block of a modular pipeline that reads captions, with the components that it asks for.

    several: whether it takes several captions in one call.
    """

    def __init__(self, folder: CheckpointFolder, prompting: Prompting, dtype: str, *, several: bool = True) -> None:
        super().__init__(folder, prompting, dtype)
        self._several = several

    @contextmanager
    def open(self, device: torch.device) -> Iterator[Encode]:
        import torch

        pipeline = self._load(device)
        names = [name for name in (*self.prompting.encodes, *self.prompting.trims.values()) if name]

        def encode(inputs: Sequence[Input]) -> list[Mapping[str, Tensor]]:
            captions = [one.caption or "" for one in inputs]
            with torch.no_grad():
                if not self._several:
                    alone = (pipeline(prompt=one, **self._arguments(), output=names) for one in captions)
                    return [self._row(named, 0) for named in alone]
                named = pipeline(prompt=captions, **self._arguments(), output=names)
            return [self._row(named, row) for row in range(len(inputs))]

        yield encode

    def _components(self) -> list[str]:
        asked = [one.name for one in self.prompting.pipeline().expected_components]
        return [name for name in self.folder.components() if name in asked and name not in self.prompting.without]

    def _arguments(self) -> dict[str, Any]:
        return dict(self.prompting.arguments)

    def _load(self, device: torch.device) -> Any:
        import torch

        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[self.dtype]
        if self._quantizer is not None:
            self._quantizer.check(device, dtype)
        block: Any = self.prompting.pipeline()
        with quietly():
            pipeline = block.init_pipeline()
            pipeline.update_components(**loaded_parts(self.folder, self._components(), dtype))
        if self._quantizer is not None:
            self._quantize(pipeline, self._quantizer, device)
        pipeline.to(device)
        return pipeline


def loaded_parts(folder: CheckpointFolder, names: Sequence[str], dtype: torch.dtype) -> dict[str, Any]:
    """Components of a checkpoint by name, each by the class that the checkpoint says."""
    import diffusers
    import transformers
    from torch.nn import Module

    root, kinds = folder.root(names), folder.components()
    found: dict[str, Any] = {}
    for name in names:
        if is_wrapped(folder, name):
            found[name] = unwrapped_tokenizer(folder, name)
            continue
        kind: Any = getattr(diffusers, kinds[name], None) or getattr(transformers, kinds[name])
        is_network = isinstance(kind, type) and issubclass(kind, Module)
        settings = {"dtype": dtype, "variant": folder.variant or None, "use_safetensors": True} if is_network else {}
        with quietly():
            found[name] = kind.from_pretrained(root / name, **settings)
    return found


@contextmanager
def _steps_told(scheduler: Any, shot: Shot) -> Iterator[None]:
    """Blocks have no callback; each of their steps is one of the scheduler's."""
    plain, taken = scheduler.step, 0

    def step(*arguments: Any, **named: Any) -> Any:
        nonlocal taken
        answer = plain(*arguments, **named)
        taken += 1
        shot.on_step(taken)
        return answer

    scheduler.step = step
    try:
        yield
    finally:
        del scheduler.step
