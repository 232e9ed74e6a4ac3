"""Words: what text encoders are given of a sample: a caption, and the facts beside it that each of them reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from st.data.encoder import Encoder, Input, Role
    from st.data.sets.prepare import PreparedSet


@dataclass(frozen=True, slots=True)
class Words:
    """A caption with the sample's facts (``lyrics``, ``bpm``) by name, and what it is used for."""

    caption: str
    facts: Mapping[str, str] = field(default_factory=dict, hash=False)
    role: Role = "caption"

    def read_by(self, encoder: Encoder) -> Mapping[str, str]:
        """The facts that the encoder reads, in its order; empty ones are absent."""
        return {name: self.facts[name] for name in encoder.facts if self.facts.get(name)}

    def told(self, encoder: Encoder) -> Words:
        """As much of them as the encoder reads."""
        return Words(self.caption, self.read_by(encoder), self.role if "role" in encoder.reads else "caption")

    def input(self, encoder: Encoder) -> Input:
        """What the encoder is given of them."""
        from st.data.encoder import Input

        told = self.told(encoder)
        return Input(self.caption, caption=self.caption, facts=told.facts, role=told.role)

    def parts(self, encoder: Encoder) -> dict[str, str]:
        """What the encoder's answer depends on, by name."""
        if not encoder.reads_captions:
            return {}
        role = {"role": self.role} if "role" in encoder.reads else {}
        return {"caption": self.caption, **{f"fact {name}": v for name, v in self.read_by(encoder).items()}, **role}


DROPPED = Words("", role="dropped")
"""In place of a caption that is dropped, with all that is said beside it: guidance is away from nothing at all."""


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
    seen: set[tuple[str, ...]] = {(text, "caption") for text in texts}
    for words in chain((DROPPED,), prompts, *map(_words_of, full)):
        told = words.told(encoder)
        identity = (told.caption, told.role, *chain.from_iterable(told.facts.items()))
        if identity not in seen:
            seen.add(identity)
            yield told


def _words_alone(encoder: Encoder, one: PreparedSet, prompts: Iterable[Words]) -> Iterator[Words]:
    """Of one data set without facts: its captions are distinct already, and need not be remembered."""
    first: dict[tuple[object, ...], Words] = {("", "caption"): Words("")}
    for words in chain((DROPPED,), prompts):
        told = words.told(encoder)
        first.setdefault((told.caption, told.role, *told.facts.items()), told)
    yield from first.values()
    yield from (Words(text) for text in one.index.distinct_captions() if (text, "caption") not in first)


def _words_of(one: PreparedSet) -> Iterator[Words]:
    for row in range(len(one.index)):
        facts = one.index.facts(row)
        yield from (Words(text, facts) for text in one.index.captions(row) or ("",))
