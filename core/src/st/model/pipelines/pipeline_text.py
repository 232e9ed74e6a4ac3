"""PipelineText: all text encoders of a pipeline as one encoder."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from st.data.encoder import Encoder, Input
from st.model.checkpoint.networks import is_wrapped, load_component
from st.model.checkpoint.quiet import left_out, quietly
from st.model.pipelines.token_count import Reading, readings

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from st.data.encoder import Encode, Reads
    from st.model.checkpoint.checkpoint_folder import CheckpointFolder
    from st.model.quantize.quantizer import Quantization, Quantizer


@dataclass(frozen=True, slots=True)
class Prompting:
    """How a pipeline is asked for what it makes of a caption.

    pipeline: its class. without: components that have nothing to do with text. encodes: a name for each value that
    ``encode_prompt`` returns, None for those not kept. trims: by name, the mask among them that says which rows are
    real; only those rows are kept, and the mask is not; all are real where the pipeline returns None as the mask.
    arguments: for ``encode_prompt``; what is not among them is as the pipeline's own call has it: users get that, and
    the defaults of ``encode_prompt`` often differ. negatives: a name for each value, of those that belong to the
    negative prompt, where the pipeline reads that otherwise than a prompt.
    """

    pipeline: type
    without: Sequence[str]
    encodes: Sequence[str | None]
    trims: Mapping[str, str]
    arguments: Mapping[str, Any]
    negatives: Sequence[str | None] = ()


class PipelineText(Encoder):
    """A pipeline without its denoiser and its autoencoder, asked ``encode_prompt``."""

    name = "text"
    reads: tuple[Reads, ...] = ("caption",)

    def __init__(self, folder: CheckpointFolder, prompting: Prompting, dtype: str) -> None:
        self.folder, self.prompting, self.dtype = folder, prompting, dtype
        if prompting.negatives:
            self.reads = ("caption", "role")
        self._quantizer: Quantizer | None = None
        self._tell: Callable[[Quantization], None] = lambda done: None

    @property
    def fingerprint(self) -> str:
        kept = [self.prompting.encodes, dict(self.prompting.trims), self._arguments()]
        asked = json.dumps([*kept, *([self.prompting.negatives] if self.prompting.negatives else [])], default=str)
        dtype = self.dtype if self._quantizer is None else f"{self.dtype}-{self._quantizer.fingerprint}"
        return f"{self.prompting.pipeline.__name__}-{self.folder.fingerprint(self._components())}-{dtype}-{asked}"

    def quantized(self, quantizer: Quantizer, tell: Callable[[Quantization], None]) -> PipelineText:
        """The same encoder with quantized weights: a ``QuantizableEncoder``."""
        made = copy(self)
        made._quantizer, made._tell = quantizer, tell
        return made

    @contextmanager
    def open(self, device: torch.device) -> Iterator[Encode]:
        import torch

        pipeline = self._load(device)
        arguments = self._arguments()
        if "device" in inspect.signature(pipeline.encode_prompt).parameters:
            arguments["device"] = device

        def ask(texts: Sequence[str], negative: bool) -> Iterator[Mapping[str, Tensor]]:
            asked: dict[str, Any] = {"prompt": list(texts)}
            if negative:
                # Only beside a prompt, which may be any.
                asked = {"prompt": [""] * len(texts), "negative_prompt": list(texts)}
                asked["do_classifier_free_guidance"] = True
            with torch.no_grad():
                values = pipeline.encode_prompt(**(arguments | asked))
            values = values if isinstance(values, tuple) else (values,)
            names = self.prompting.negatives if negative else self.prompting.encodes
            named = {name: value for name, value in zip(names, values, strict=True) if name}
            return (self._row(named, row) for row in range(len(texts)))

        def encode(inputs: Sequence[Input]) -> list[Mapping[str, Tensor]]:
            against = [bool(self.prompting.negatives) and one.role != "caption" for one in inputs]
            answers = {}
            for negative in sorted(set(against)):
                texts = [
                    one.caption or ""
                    for one, is_negative in zip(inputs, against, strict=True)
                    if is_negative == negative
                ]
                answers[negative] = ask(texts, negative)
            return [next(answers[negative]) for negative in against]

        yield encode

    def count_tokens(self, caption: str) -> tuple[int, int] | None:
        """With all that the pipeline puts around it, for the tokenizer that reads the most of it."""
        counts = [(min(tokens, one.limit), tokens) for one in self._readings for tokens in (one.tokens(caption),)]
        if not counts:
            return None
        read, tokens = max(counts)
        return tokens, read

    def _row(self, named: Mapping[str, Any], row: int) -> dict[str, Tensor]:
        entry = {}
        for name, values in named.items():
            if name not in self.prompting.trims.values():
                kept = values[row]
                mask = named.get(self.prompting.trims.get(name, ""))
                if mask is not None:
                    kept = kept[mask[row].bool()]
                entry[name] = kept.detach().to("cpu", copy=True)
        return entry

    def _components(self) -> list[str]:
        return [name for name in self.folder.components() if name not in (*self.prompting.without, "scheduler")]

    def _load(self, device: torch.device) -> Any:
        import torch
        from diffusers import configuration_utils

        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[self.dtype]
        frozen: Any = configuration_utils.FrozenDict
        if self._quantizer is not None:
            self._quantizer.check(device, dtype)
        loaded = load_pipeline(self.prompting.pipeline, self.folder, self._components(), dtype)
        if self._quantizer is not None:
            self._quantize(loaded, self._quantizer, device)
        loaded.to(device)
        for name, entry in self.folder.index().items():
            model = isinstance(entry, list) and entry[0] == "diffusers" and name != "scheduler"
            if model and name in self.prompting.without and getattr(loaded, name, None) is None:
                # A pipeline may ask the denoiser that is not there for the width of embeddings that it makes up.
                loaded.__dict__[name] = SimpleNamespace(config=frozen(self.folder.config(name)), dtype=dtype)
        return loaded

    def _quantize(self, loaded: Any, quantizer: Quantizer, device: torch.device) -> None:
        from torch import nn

        from st.model.quantize.quantized import quantize

        networks = [getattr(loaded, name) for name in self._components()]
        done = [quantize(network, quantizer, device) for network in networks if isinstance(network, nn.Module)]
        if not any(one.layers for one in done):
            done[0].require()
        for one in done:
            self._tell(one)

    def _arguments(self) -> dict[str, Any]:
        """Every argument that has no default is given: None where nothing is known about it."""
        pipeline: Any = self.prompting.pipeline
        called = inspect.signature(pipeline.__call__).parameters
        arguments: dict[str, Any] = {}
        for name, parameter in list(inspect.signature(pipeline.encode_prompt).parameters.items())[1:]:
            if name in ("prompt", "device") or parameter.kind is parameter.VAR_KEYWORD:
                continue
            default = called[name].default if name in called else parameter.default
            if default is not parameter.empty or parameter.default is parameter.empty:
                arguments[name] = None if default is parameter.empty else default
        if "do_classifier_free_guidance" in arguments:
            arguments["do_classifier_free_guidance"] = False
        return arguments | dict(self.prompting.arguments)

    @cached_property
    def _readings(self) -> list[Reading]:
        """Asked for once: a run may count the tokens of many captions."""
        return readings(self.prompting.pipeline, self.folder, self._components(), self._arguments())


def load_pipeline(pipeline: Any, folder: CheckpointFolder, components: Sequence[str], dtype: torch.dtype) -> Any:
    """A pipeline of some of its components, with its scheduler; the others are None. Raises StError.

    Components are loaded here, whole or not at all: the pipeline would make up weights that are missing, and ask
    whether code of a tokenizer may be run.
    """
    wanted = [name for name in folder.components() if name in (*components, "scheduler")]
    parameters = inspect.signature(pipeline.__init__).parameters.items()
    required = [name for name, parameter in parameters if parameter.default is parameter.empty and name != "self"]
    absent = {name: None for name in (*required, *pipeline._optional_components) if name not in wanted}
    loaded = {name: load_component(folder, name, dtype) for name in wanted}
    # diffusers takes no tokenizer for a processor when it loads.
    later = {name: loaded.pop(name) for name in wanted if is_wrapped(folder, name)}
    given = {**loaded, **absent, **dict.fromkeys(later), **left_out(pipeline, absent)}
    with quietly():
        made = pipeline.from_pretrained(folder.root(wanted), dtype=dtype, **given)
    made.register_modules(**later)
    return made
