"""What captions become, and what text encoders that learn make of their tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from st import Encoder, Input

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from st.data.encoder import Encode, Reads
    from st.model.pipelines.pipeline_text import PipelineText
    from st.model.quantize.quantizer import Quantization, Quantizer


class MarkedCaptions(Encoder):
    """Another encoder, whose entries also say whether there is a caption: ``captioned`` (1,), 1 or 0.

    zeros: whether the empty caption is all zeros, as the pipeline has it for a picture without a negative prompt.
    """

    name = "text"
    reads: tuple[Reads, ...] = ("caption",)

    def __init__(self, inner: Encoder, zeros: bool) -> None:
        self.inner, self.zeros, self.reads = inner, zeros, inner.reads

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


def read_tokens(
    encoders: Mapping[str, nn.Module], conditions: Mapping[str, Tensor], *, zeros: bool
) -> Mapping[str, Tensor]:
    """What the pipeline's ``encode_prompt`` gives for tokens: ``prompt_embeds`` and ``pooled_prompt_embeds``.

    conditions: ``tokens``, ``tokens_2`` (B, 77) and ``captioned`` (B, 1). zeros: whether what has no caption is read as
    zeros.
    """
    import torch

    first = encoders["text_encoder"](conditions["tokens"], output_hidden_states=True)
    second = encoders["text_encoder_2"](conditions["tokens_2"], output_hidden_states=True)
    embeds = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
    pooled: Tensor = second.text_embeds
    if zeros:
        captioned = conditions["captioned"].to(embeds.dtype)
        embeds, pooled = embeds * captioned[:, :, None], pooled * captioned
    return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}
