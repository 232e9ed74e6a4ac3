"""Validation prompts: what is rendered, as a run file, a prompt library or a prompt file of other trainers says it."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError

from st.data.sets.words import Words
from st.errors import StError
from st.options import Options
from st.spelling import did_you_mean

if TYPE_CHECKING:
    from st.data.encoder import Encoder

LONGEST_NAME = 40


class PromptOptions(Options):
    """One validation prompt. What is not set is taken from [validation]."""

    prompt: str
    """Text to render."""
    name: str = ""
    """Name in file names and in the report. The first words of the text where it is not set."""
    negative: str | None = None
    """Text to keep away from, used where guidance is above 1."""
    seed: int | None = None
    """Seed of the noise that the picture starts from."""
    width: int | None = Field(default=None, gt=0)
    """Width in pixels; with height, in place of the resolutions of [validation]."""
    height: int | None = Field(default=None, gt=0)
    """Height in pixels; with width, in place of the resolutions of [validation]."""
    steps: int | None = Field(default=None, gt=0)
    """Sampling steps."""
    guidance: float | None = Field(default=None, ge=0)
    """Strength of guidance; 1 is none."""
    references: tuple[str, ...] = ()
    """Picture files that the model is shown, where it reads references: to edit, or to be controlled by."""
    seconds: float | None = Field(default=None, gt=0)
    """Length of a sound."""
    facts: Mapping[str, str | int | float] = Field(default_factory=dict)
    """What the model is told beside the text, by name, where it reads more: { lyrics = "...", bpm = 120 }."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A validation prompt at a size: one picture to render. text: what to draw. size: (height, width), in pixels.

    name is unique among the prompts and fit for a file name.
    """

    name: str
    text: str
    negative: str
    seed: int
    size: tuple[int, int]
    steps: int
    guidance: float
    references: tuple[str, ...] = ()
    seconds: float = 0.0
    facts: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def guided(self) -> bool:
        """Whether the negative prompt is asked at all."""
        return self.guidance > 1

    @property
    def words(self) -> Words:
        """What text encoders are given of it, as of a sample of its length."""
        return Words(self.text, {**self.facts, "seconds": f"{self.seconds:g}"} if self.seconds else self.facts)

    @property
    def against(self) -> Words:
        """What they are given to keep away from; nothing is said beside it, as of a caption that is dropped."""
        return Words(self.negative, role="negative")


def read_library(path: Path) -> tuple[PromptOptions, ...]:
    """The prompts of a file, in its order. Raises StError naming the entry that cannot be used.

    ``.toml`` and ``.json`` hold names with a text or a table each, JSON also a list of either; any other file has one
    prompt per line with the flags of ``parse_line``, empty lines and those that start with ``#`` left out.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise StError(
            f"validation.library = {str(path)!r} cannot be read: {error.strerror}",
            fix="name a .toml, .json or .txt file with prompts",
        ) from error
    if path.suffix == ".toml":
        return _entries(_parsed(path, tomllib.loads, text), path)
    if path.suffix == ".json":
        return _entries(_parsed(path, json.loads, text), path)
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    return tuple(parse_line(line, f"{path}:{number}") for number, line in lines if line and not line.startswith("#"))


_FLAGS = {
    "w": ("width", int),
    "h": ("height", int),
    "s": ("steps", int),
    "d": ("seed", int),
    "g": ("guidance", float),
    "l": ("guidance", float),
    "n": ("negative", str),
}
_FLAG = re.compile(r"(?:^|\s)--([a-z]+)(?=\s|$)")


def parse_line(line: str, where: str = "prompt") -> PromptOptions:
    """A prompt with flags, as sample files have them: ``a cat --w 512 --h 768 --s 20 --d 7 --g 4 --n blurry``.

    w, h: size. s: steps. d: seed. g or l: guidance. n: negative prompt. Raises StError for another flag or a bad value.
    """
    pieces = _FLAG.split(line)
    values: dict[str, Any] = {"prompt": pieces[0].strip()}
    for flag, text in zip(pieces[1::2], pieces[2::2], strict=True):
        if flag not in _FLAGS:
            raise StError(
                f"{where}: unknown flag '--{flag}'", fix=f"known are {', '.join(f'--{one}' for one in _FLAGS)}"
            )
        name, kind = _FLAGS[flag]
        try:
            values[name] = kind(text.strip())
        except ValueError as error:
            raise StError(f"{where}: --{flag} {text.strip()!r} is no {kind.__name__}") from error
    return _checked(values, where)


def sized(
    prompts: Sequence[PromptOptions],
    sizes: Sequence[tuple[int, int]],
    defaults: Prompt,
    shown: Callable[[str], str] = str,
) -> tuple[Prompt, ...]:
    """Every picture to render, in order: each prompt at its own size, or at each of ``sizes``, (height, width).

    shown: what of a text may stand in the names of files.
    """
    names: set[str] = set()
    found = []
    for prompt in prompts:
        name = _unique(_file_name(shown(prompt.name or prompt.prompt)), names)
        one = replace(
            defaults,
            name=name,
            text=prompt.prompt,
            negative=defaults.negative if prompt.negative is None else prompt.negative,
            seed=defaults.seed if prompt.seed is None else prompt.seed,
            steps=prompt.steps or defaults.steps,
            guidance=defaults.guidance if prompt.guidance is None else prompt.guidance,
            references=prompt.references,
            seconds=prompt.seconds or defaults.seconds,
            facts={name: str(value) for name, value in prompt.facts.items()},
        )
        found += [replace(one, size=size) for size in _sizes(prompt, sizes)]
    return tuple(found)


def texts(wanted: Iterable[Prompt]) -> list[Words]:
    """Everything that must be encoded to render these, each once, in order."""
    found: dict[Words, None] = {}
    for prompt in wanted:
        found[prompt.words] = None
        if prompt.guided:
            found[prompt.against] = None
    return list(found)


def check_facts(wanted: Iterable[Prompt], encoders: Iterable[Encoder]) -> None:
    """Raise StError for a fact of a prompt that none of these encoders reads."""
    # The length is told by itself.
    known = [name for encoder in encoders for name in encoder.facts if name != "seconds"]
    for prompt in wanted:
        for name in prompt.facts.keys() - known:
            raise StError(
                f"validation prompt {prompt.name!r}: this model is told no {name!r}",
                fix=did_you_mean(name, known) or (f"it is told {', '.join(known)}" if known else "delete its facts"),
            )


def parse_size(text: str) -> tuple[int, int]:
    """``"1024"`` or ``"512x768"`` (width x height) as (height, width). Raises ValueError."""
    match = re.fullmatch(r"\s*(\d+)\s*(?:[xX]\s*(\d+)\s*)?", text)
    if match is None or int(match[1]) == 0 or match[2] == "0":
        raise ValueError(f"{text!r} is no size: write '1024', or '512x768' for width x height")
    return int(match[2] or match[1]), int(match[1])


def _parsed(path: Path, parse: Any, text: str) -> object:
    try:
        parsed: object = parse(text)
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise StError(f"validation.library = {str(path)!r} cannot be parsed: {why}") from error
    return parsed


def _entries(parsed: object, path: Path) -> tuple[PromptOptions, ...]:
    if isinstance(parsed, Mapping):
        return tuple(_entry({"name": name}, entry, f"{path}: {name!r}") for name, entry in parsed.items())
    if isinstance(parsed, list):
        return tuple(_entry({}, entry, f"{path}: entry {number}") for number, entry in enumerate(parsed, start=1))
    raise StError(f"{str(path)!r} holds no prompts", fix='write them as {"name": "text", ...}')


def _entry(known: Mapping[str, Any], entry: object, where: str) -> PromptOptions:
    if isinstance(entry, str):
        return _checked({**known, "prompt": entry}, where)
    if isinstance(entry, Mapping):
        renamed = {("prompt" if key == "caption" else key): value for key, value in entry.items() if key != "lyrics"}
        if "lyrics" in entry:
            # Where libraries of other trainers have it.
            renamed["facts"] = {"lyrics": entry["lyrics"], **(renamed.get("facts") or {})}
        return _checked({**known, **renamed}, where)
    raise StError(f"{where} is neither a text nor a table with a prompt")


def _checked(values: Mapping[str, Any], where: str) -> PromptOptions:
    try:
        return PromptOptions.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise StError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _sizes(prompt: PromptOptions, sizes: Sequence[tuple[int, int]]) -> Sequence[tuple[int, int]]:
    if prompt.width is None and prompt.height is None:
        return sizes
    return [(prompt.height or prompt.width or 0, prompt.width or prompt.height or 0)]


def _file_name(text: str) -> str:
    words = re.sub(r"[^\w]+", "-", text.lower()).strip("-_")
    if len(words) > LONGEST_NAME:
        words = words[: LONGEST_NAME + 1].rpartition("-")[0] or words[:LONGEST_NAME]
    return words or "empty"


def _unique(name: str, taken: set[str]) -> str:
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}-{number}"
    taken.add(free)
    return free


def recipe(prompt: Prompt, size: str, sampler: str) -> dict[str, str]:
    """How a picture was made, under the key and in the words that picture viewers of the field read."""
    negative = f"Negative prompt: {prompt.negative}\n" if prompt.guided and prompt.negative else ""
    settings = (
        f"Steps: {prompt.steps}, Sampler: {sampler}, CFG scale: {prompt.guidance:g}, Seed: {prompt.seed}, Size: {size}"
    )
    told = "".join(f"{name}: {text}\n" for name, text in prompt.facts.items())
    return {"parameters": f"{prompt.text}\n{negative}{told}{settings}"}
