"""What captions become: embeddings that are cached, or tokens where the text encoders learn too."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from st import Encoder, Input
from st.model.checkpoint.networks import load_tokenizer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from st.data.encoder import Encode
    from st.model.checkpoint.checkpoint_folder import CheckpointFolder
    from st.model.pipelines.pipeline_text import PipelineText
    from st.model.quantize.quantizer import Quantization, Quantizer

TOKENIZERS = ("tokenizer", "tokenizer_2")


class MarkedCaptions(Encoder):
    """Another encoder, whose entries also say whether there is a caption: ``captioned`` (1,), 1 or 0.

    zeros: whether the empty caption is all zeros, as the pipeline has it for a picture without a negative prompt.
    """

    name = "text"
    reads = "caption"

    def __init__(self, inner: Encoder, zeros: bool) -> None:
        self.inner, self.zeros = inner, zeros

    @property
    def fingerprint(self) -> str:
        return f"{self.inner.fingerprint}-{'zeros' if self.zeros else 'encoded'}"

    @contextmanager
    def open(self, device: torch.device) -> Iterator[Encode]:
        with self.inner.open(device) as encode:

            def marked(inputs: Sequence[Input]) -> list[Mapping[str, Tensor]]:
                return [self._entry(one, entry) for one, entry in zip(inputs, encode(inputs), strict=True)]

            yield marked

    def count_tokens(self, caption: str) -> tuple[int, int] | None:
        return self.inner.count_tokens(caption)

    def _entry(self, one: Input, entry: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        import torch

        kept = {name: torch.zeros_like(tensor) for name, tensor in entry.items()}
        shown = entry if one.caption or not self.zeros else kept
        return {**shown, "captioned": torch.tensor([1.0 if one.caption else 0.0])}


class EncodedCaptions(MarkedCaptions):
    """Captions that a pipeline's text encoders read, which can be quantized."""

    inner: PipelineText

    def quantized(self, quantizer: Quantizer, tell: Callable[[Quantization], None]) -> EncodedCaptions:
        """The same encoder with quantized weights."""
        return EncodedCaptions(self.inner.quantized(quantizer, tell), self.zeros)


class Tokens(Encoder):
    """Both tokenizers: ``tokens`` and ``tokens_2``, (77,) int64 each.

    counter: the encoder that says how many tokens of a caption are read.
    """

    name = "tokens"
    reads = "caption"

    def __init__(self, folder: CheckpointFolder, counter: Encoder) -> None:
        self.folder, self.counter = folder, counter

    @property
    def fingerprint(self) -> str:
        return f"tokens-{self.folder.fingerprint(TOKENIZERS)}"

    @contextmanager
    def open(self, device: torch.device) -> Iterator[Encode]:
        tokenizers = {name.replace("tokenizer", "tokens"): load_tokenizer(self.folder, name) for name in TOKENIZERS}

        def encode(inputs: Sequence[Input]) -> list[Mapping[str, Tensor]]:
            texts = [one.caption or "" for one in inputs]
            found = {
                name: tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
                for name, tokenizer in tokenizers.items()
            }
            return [{name: ids[row].clone() for name, ids in found.items()} for row in range(len(inputs))]

        yield encode

    def count_tokens(self, caption: str) -> tuple[int, int] | None:
        return self.counter.count_tokens(caption)
