"""Words: what text encoders are given of a sample: a caption, and the facts beside it that each of them reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from st.data.encoder import Encoder
    from st.data.sets.prepare import PreparedSet


@dataclass(frozen=True, slots=True)
class Words:
    """A caption with the sample's facts (``lyrics``, ``bpm``) by name."""

    caption: str
    facts: Mapping[str, str] = field(default_factory=dict, hash=False)

    def read_by(self, encoder: Encoder) -> Mapping[str, str]:
        """The facts that the encoder reads, in its order; empty ones are absent."""
        return {name: self.facts[name] for name in encoder.facts if self.facts.get(name)}


def words_for(encoder: Encoder, sets: Iterable[PreparedSet], prompts: Iterable[Words]) -> Iterator[Words]:
    """Everything that an encoder of captions has to be given, once each: the empty caption, prompts, all samples'."""
    plain: list[PreparedSet] = []
    full: list[PreparedSet] = []
    for one in sets:
        (full if encoder.facts and one.index.has_facts else plain).append(one)
    if len(plain) == 1 and not full:
        yield from _words_alone(encoder, plain[0], prompts)
        return
    texts = dict.fromkeys(chain(("",), *(one.index.distinct_captions() for one in plain)))
    yield from map(Words, texts)
    seen: set[tuple[str, ...]] = {(text,) for text in texts}
    for words in chain(prompts, *map(_words_of, full)):
        facts = words.read_by(encoder)
        identity = (words.caption, *chain.from_iterable(facts.items()))
        if identity not in seen:
            seen.add(identity)
            yield Words(words.caption, facts)


def _words_alone(encoder: Encoder, one: PreparedSet, prompts: Iterable[Words]) -> Iterator[Words]:
    """Of one data set without facts: its captions are distinct already, and need not be remembered."""
    first: dict[tuple[object, ...], Words] = {("",): Words("")}
    for words in prompts:
        facts = words.read_by(encoder)
        first.setdefault((words.caption, *facts.items()), Words(words.caption, facts))
    yield from first.values()
    yield from (Words(text) for text in one.index.distinct_captions() if (text,) not in first)


def _words_of(one: PreparedSet) -> Iterator[Words]:
    for row in range(len(one.index)):
        facts = one.index.facts(row)
        yield from (Words(text, facts) for text in one.index.captions(row) or ("",))
