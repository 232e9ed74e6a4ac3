"""A tokenizer small enough for tiny checkpoints, in the layout of the published ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


def character_tokenizer(characters: Sequence[str]) -> tuple[Any, int]:
    """A T5 tokenizer with one token for each character, and how many tokens it has.

    0 is padding, 1 the end, 2 unknown, as in the published table.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import T5Tokenizer

    space = "\u2581"
    pieces = ["<pad>", "</s>", "<unk>", space, *characters]
    table: Any = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=2))
    table.pre_tokenizer = pre_tokenizers.Metaspace(replacement=space, prepend_scheme="always")
    table.decoder = decoders.Metaspace(replacement=space, prepend_scheme="always")
    table.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = T5Tokenizer(
        tokenizer_object=table,
        model_max_length=512,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_ids=0,
    )
    return tokenizer, len(pieces)
