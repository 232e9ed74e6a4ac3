"""Hashed words: a text encoder that is a formula, the same on every machine and in every process."""

from __future__ import annotations

import math
import re
from contextlib import contextmanager
from hashlib import blake2b
from typing import TYPE_CHECKING

from st import Encoder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import torch
    from torch import Tensor

    from st import Input
    from st.data.encoder import Encode, Reads

BYTES_PER_NUMBER = 4
WORD = re.compile(r"\w+")


class HashedWords(Encoder):
    """A caption as the vectors of its words, which are drawn from the hash of each word's spelling.

    Gives ``words`` (budget, width), float32, zeros where the caption has ended, and ``pooled`` (width,), the words' sum
    divided by the root of their number. The length is fixed because the denoiser reads no mask: padded to the longest
    caption of a batch, a row would change with its batch mates. The empty caption is all zeros.
    """

    name = "words"
    reads: tuple[Reads, ...] = ("caption",)

    def __init__(self, budget: int, width: int) -> None:
        self.budget, self.width = budget, width

    @property
    def fingerprint(self) -> str:
        return f"pocket-words-1-{self.budget}x{self.width}"

    @contextmanager
    def open(self, device: torch.device) -> Iterator[Encode]:
        yield self._encode

    def count_tokens(self, caption: str) -> tuple[int, int]:
        count = len(split(caption))
        return count, min(count, self.budget)

    def _encode(self, inputs: Sequence[Input]) -> list[Mapping[str, Tensor]]:
        return [self._one(given.caption or "") for given in inputs]

    def _one(self, caption: str) -> Mapping[str, Tensor]:
        import torch

        spelled = split(caption)[: self.budget]
        words = torch.zeros(self.budget, self.width)
        for row, word in zip(words, spelled, strict=False):
            row.copy_(torch.tensor(vector(word, self.width)))
        return {"words": words, "pooled": words.sum(0) / math.sqrt(max(1, len(spelled)))}


def split(caption: str) -> list[str]:
    """The words of a caption, without case and punctuation."""
    return WORD.findall(caption.casefold())


def vector(word: str, width: int) -> list[float]:
    """``width`` numbers of mean 0 and variance 1 over all words, uniformly distributed.

    From BLAKE2b (RFC 7693) of the spelling; Python's own ``hash`` differs from process to process.
    """
    numbers: list[float] = []
    for part in range(math.ceil(width * BYTES_PER_NUMBER / blake2b.MAX_DIGEST_SIZE)):
        digest = blake2b(word.encode(), salt=part.to_bytes(blake2b.SALT_SIZE, "little")).digest()
        for start in range(0, len(digest), BYTES_PER_NUMBER):
            integer = int.from_bytes(digest[start : start + BYTES_PER_NUMBER], "little")
            numbers.append((integer / 2 ** (8 * BYTES_PER_NUMBER) - 0.5) * math.sqrt(12))
    return numbers[:width]
