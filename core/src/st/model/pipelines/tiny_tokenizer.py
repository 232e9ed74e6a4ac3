"""Tokenizers small enough for tiny checkpoints, in the layout of the published ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

PRINTABLE = tuple(chr(code) for code in range(33, 127))
CLIP_LENGTH = 77
START, END = "<|startoftext|>", "<|endoftext|>"
SPACE = "\u2581"


def character_tokenizer(characters: Sequence[str] = PRINTABLE) -> tuple[Any, int]:
    """A T5 tokenizer with one token for each character, and how many tokens it has.

    0 is padding, 1 the end, 2 unknown, as in the published table.
    """
    from tokenizers import processors
    from transformers import T5Tokenizer

    pieces = ["<pad>", "</s>", "<unk>", SPACE, *characters]
    table = _unigrams(pieces, 2)
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


def clip_tokenizer(characters: Sequence[str] = PRINTABLE, padding: str = END) -> tuple[Any, int]:
    """CLIP's tokenizer with two tokens for each character, inside and at the end of a word, and how many it has.

    The last two begin and end a text. padding: the token that fills it up.
    """
    from transformers import CLIPTokenizer

    words = [*characters, *(f"{one}</w>" for one in characters), START, END]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=CLIP_LENGTH, pad_token=padding)
    return tokenizer, len(words)


def byte_tokenizer(specials: Sequence[str] = (), side: str = "left") -> tuple[Any, int]:
    """Qwen's tokenizer with one token for each byte, and how many it has.

    specials: words that are one token each. side: where padding goes, "left" or "right".
    """
    from tokenizers import pre_tokenizers
    from transformers import Qwen2Tokenizer

    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), END]
    tokenizer = Qwen2Tokenizer(
        vocab={word: number for number, word in enumerate(words)},
        merges=[],
        unk_token=END,
        eos_token=END,
        pad_token=END,
        padding_side=side,
    )
    if specials:
        tokenizer.add_special_tokens({"additional_special_tokens": list(specials)})
    return tokenizer, len(words) + len(specials)


def begun_tokenizer(kind: str, characters: Sequence[str] = PRINTABLE) -> tuple[Any, int]:
    """A tokenizer that begins every text with a token of its own, one token for each character, and how many it has.

    kind: its class in transformers, such as "GemmaTokenizer" or "LlamaTokenizer". Padding goes to the right.
    """
    import transformers
    from tokenizers import processors

    # Each in the order of its published table.
    gemma = kind.startswith("Gemma")
    begin, end = ("<bos>", "<eos>") if gemma else ("<s>", "</s>")
    specials = ["<pad>", end, begin, "<unk>", "<mask>"] if gemma else ["<unk>", begin, end, "<pad>"]
    pieces = [*specials, SPACE, *characters]
    made: Any = getattr(transformers, kind)
    tokenizer = made(
        vocab={piece: number for number, piece in enumerate(pieces)},
        merges=[],
        model_max_length=512,
        padding_side="right",
        pad_token="<pad>",
        bos_token=begin,
        eos_token=end,
        unk_token="<unk>",
    )
    beginning = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, pieces.index(begin))])
    tokenizer.backend_tokenizer.post_processor = beginning
    return tokenizer, len(pieces)


def _unigrams(pieces: Sequence[str], unknown: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    table: Any = Tokenizer(models.Unigram([(piece, -1.0) for piece in pieces], unk_id=unknown))
    table.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
    table.decoder = decoders.Metaspace(replacement=SPACE, prepend_scheme="always")
    return table
