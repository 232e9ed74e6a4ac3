"""Captions: from a file's bytes to the texts that are encoded."""

from __future__ import annotations

import hashlib
import json
import random
import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from st.errors import DataUnusable, SampleUnreadable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from st.data.dataset import DatasetOptions, ShuffleOptions

_CAPTIONS = ("text", "caption", "captions")
"""Fields of a JSON object that hold captions; the first that is there is taken."""

_SEPARATORS = MappingProxyType(
    {
        "comma": (re.compile(r"(?<!\d),|,(?!\d)"), ", "),
        "space": (re.compile(r"\s+"), " "),
        "period": (re.compile(r"\.(?=\s|$)"), ". "),
    }
)
"""Where a caption may be split, and what joins its parts: not within numbers ("1,000", "1.5 m")."""

_LINE_ENDS = re.compile(r"\r\n|\n|\r")
"""Only these: ``splitlines`` also splits at form feeds and at separators that texts of some languages hold."""

_OPENING, _CLOSING = "([{<", ")]}>"


def read(data: bytes, key: str) -> str:
    """The text of a caption file, UTF-8 with or without a byte order mark. Raises SampleUnreadable naming the byte."""
    if b"\0" in data:
        where = f"byte 0x00 at position {data.index(0)}"
        raise SampleUnreadable(key, f"its caption is not plain text in UTF-8 ({where}; is it UTF-16?)")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        where = f"byte {data[error.start]:#04x} at position {error.start}"
        raise SampleUnreadable(key, f"its caption is not UTF-8 ({where})") from error


def parsed(text: str) -> object:
    """What JSON says. Raises ValueError, also for what is no text that can be encoded, nested too deep or too long."""
    try:
        made: object = json.loads(text)
        # Half of a pair of surrogates is a string to Python and to nobody else.
        json.dumps(made, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    return made


def described(where: str, key: str, row: object) -> tuple[tuple[str, ...], Mapping[str, str]]:
    """Captions and facts out of a JSON object; facts are its other fields with a text or a number.

    Raises DataUnusable naming the place where the caption is neither a text nor a list of texts.
    """
    if not isinstance(row, dict):
        raise DataUnusable(f"{where} is no JSON object.", fix='Write {"text": "a cat"}.')
    value = next((row[name] for name in _CAPTIONS if name in row), None)
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DataUnusable(f"{where}: the caption of {key!r} is {value!r}, not a text or a list of texts.")
    facts = {name: fact for name, fact in row.items() if name not in (*_CAPTIONS, "file_name")}
    plain = {name: str(fact) for name, fact in facts.items() if isinstance(fact, str | int | float)}
    return tuple(texts), plain


def lines(text: str) -> tuple[str, ...]:
    """Each line that is not empty, without the white space around it."""
    return tuple(stripped for line in _LINE_ENDS.split(text) if (stripped := line.strip()))


def from_filename(key: str) -> str:
    """The caption that a file's name spells: its stem with underscores as spaces."""
    return key.rpartition("/")[2].rpartition(".")[0].replace("_", " ").strip()


def split(caption: str, split_on: Literal["comma", "space", "period"]) -> list[str]:
    """The parts of a caption between separators that stand outside brackets: "(a, b:1.2)" is one part.

    Brackets that are not closed hold nothing together.
    """
    depths, depth = [], 0
    for letter in caption:
        depth += (letter in _OPENING) - (letter in _CLOSING)
        depths.append(depth)
    balanced = depth == 0 and min(depths, default=0) >= 0
    parts, start = [], 0
    for match in _SEPARATORS[split_on][0].finditer(caption):
        if not balanced or depths[match.start()] == 0:
            parts.append(caption[start : match.start()])
            start = match.end()
    return [*parts, caption[start:]]


def shuffled(caption: str, options: ShuffleOptions, seed: int) -> tuple[str, ...]:
    """The caption and its variants with the parts in another order, without repetitions.

    Variant i depends on (seed, caption, i) alone, so that all variants can be encoded before training. A caption with
    at most one part that can move is returned as it is.
    """
    joint = _SEPARATORS[options.split_on][1]
    parts = [stripped for part in split(caption, options.split_on) if (stripped := part.strip())]
    ending = "." if options.split_on == "period" and caption.rstrip().endswith(".") else ""
    fixed, movable = parts[: options.keep], parts[options.keep :]
    if len(movable) <= 1:
        return (caption,)
    own = int(hashlib.md5(caption.encode(), usedforsecurity=False).hexdigest(), 16) & 0xFFFFFFFF
    variants = [caption] if options.include_original else []
    for number in range(options.count):
        order = list(movable)
        random.Random(seed + own + number).shuffle(order)
        variants.append(joint.join(fixed + order) + ending)
    return tuple(dict.fromkeys(variants))


@dataclass(frozen=True, slots=True)
class CaptionRecipe:
    """How the captions of a data set become those that are trained on.

    Order: the instance prompt replaces what was read; parts are shuffled; prefix and suffix are added.
    """

    instance_prompts: tuple[str, ...] = ()
    prefix: str = ""
    suffix: str = ""
    shuffle: ShuffleOptions | None = None
    seed: int = 0
    empty_if_missing: bool = False

    @classmethod
    def of(cls, options: DatasetOptions, seed: int) -> CaptionRecipe:
        own = options.shuffle.seed if options.shuffle else None
        return cls(
            instance_prompts=options.instance_prompts,
            prefix=options.caption_prefix,
            suffix=options.caption_suffix,
            shuffle=options.shuffle,
            seed=seed if own is None else own,
            empty_if_missing=options.missing_caption == "empty",
        )

    @property
    def is_plain(self) -> bool:
        """Whether captions are trained on as they were read."""
        return not (self.instance_prompts or self.prefix or self.suffix or self.shuffle or self.empty_if_missing)

    def apply(self, captions: Sequence[str]) -> tuple[str, ...]:
        """The captions that one sample is trained on; every one of them is encoded, one is drawn per visit."""
        texts: Sequence[str] = self.instance_prompts or captions or ([""] if self.empty_if_missing else [])
        if shuffle := self.shuffle:
            texts = [variant for text in texts for variant in shuffled(text, shuffle, self.seed)]
        if self.prefix or self.suffix:
            texts = [f"{self.prefix}{text}{self.suffix}" for text in texts]
        return tuple(dict.fromkeys(texts))
