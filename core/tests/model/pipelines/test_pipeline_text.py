"""The text encoders of a pipeline: their outputs, their padding and what they cut off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from st.model.pipelines.pipeline_text import PipelineText, Prompting

# A guard of diffusers warns where the safety checker, the image encoder or a tokenizer is left out, as it is here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")


def ask(upstream: Any, texts: Sequence[str]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        asked: tuple[Tensor, ...] = upstream.encode_prompt(
            list(texts), None, None, do_classifier_free_guidance=False, max_sequence_length=20
        )
    return asked


def test_captions_are_encoded_as_the_pipeline_does(family: Any, pipelines: Any) -> None:
    texts = ["a red square", "blue"]

    entries = pipelines.conditions(family, *texts)

    embeds, _, pooled, _ = ask(pipelines.upstream, texts)
    for row, entry in enumerate(entries):
        assert torch.equal(entry["prompt_embeds"], embeds[row])
        assert torch.equal(entry["pooled_prompt_embeds"], pooled[row])


def test_tokens_that_are_cut_off_are_counted(family: Any) -> None:
    (encoder,) = family.text_encoders()

    assert encoder.count_tokens("abc") == (5, 5)
    assert encoder.count_tokens("x" * 30) == (32, 20)


def test_what_a_family_does_not_say_is_as_the_pipelines_call_has_it(family: Any) -> None:
    class Upstream:
        def __call__(self, prompt: str, max_sequence_length: int = 512) -> None: ...
        def encode_prompt(self, prompt: str, second: str, max_sequence_length: int = 226) -> None: ...

    asked = PipelineText(family.folder, Prompting(Upstream, (), ("text",), {}, {}), "fp32")

    assert asked.fingerprint.endswith('{"second": null, "max_sequence_length": 512}]')


def test_padding_is_not_kept_and_its_mask_comes_back(family: Any) -> None:
    class Masked(type(family)):  # type: ignore[misc]
        encodes = ("prompt_embeds", "prompt_attention_mask")
        trims: ClassVar = {"prompt_embeds": "prompt_attention_mask"}

    masked = Masked(family.options)
    (encoder,) = masked.text_encoders()
    assert isinstance(encoder, PipelineText)
    padded = {"prompt_embeds": torch.rand(2, 4, 3), "prompt_attention_mask": torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])}

    entries = [encoder._row(padded, row) for row in range(2)]
    batch = masked.collate(entries)

    assert [{name: tuple(one.shape) for name, one in entry.items()} for entry in entries] == [
        {"prompt_embeds": (2, 3)},
        {"prompt_embeds": (4, 3)},
    ]
    again = masked._conditions(batch, "negative_")
    assert torch.equal(again["negative_prompt_attention_mask"], padded["prompt_attention_mask"])
    assert masked._conditions(masked.collate(entries[:1]), "")["prompt_attention_mask"].tolist() == [[1, 1]]
