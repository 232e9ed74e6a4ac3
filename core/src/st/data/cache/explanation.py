"""Explanation: why a sample's cache entries are there, or what keeps an older one from being used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from st.data.cache.joint import texts_of
from st.data.cache.pruning import records
from st.data.sets.words import Words

if TYPE_CHECKING:
    from st.data.cache.cache import Cache, Origin
    from st.data.cache.origins import Origins
    from st.data.sets.prepare import PreparedSet


@dataclass(frozen=True, slots=True)
class Explanation:
    """One entry that a sample needs. state: "cached", "damaged", or why it is not there."""

    encoder: str
    reads: str
    state: str


def explain(origins: Origins, cache: Cache, one: PreparedSet, row: int) -> Iterator[Explanation]:
    """Every entry that training on a sample needs. Reads the sample's bytes. Raises SampleUnreadable."""
    known = [record for _, _, record in records(cache)]
    one.digest(row)
    for encoder in origins.media_readers:
        origin = origins.media(encoder, one, row)
        assert origin is not None
        yield Explanation(encoder.name, one.index.key(row), _state(cache, origin, known))
    for other in one.references:
        other.digest(row)
        origin = origins.media(origins.references, other, row)
        assert origin is not None
        yield Explanation(origins.references.name, other.index.key(row), _state(cache, origin, known))
    for encoder in origins.joint_readers:
        for words in texts_of(one, row, encoder):
            origin = origins.joint(encoder, one, row, words)
            assert origin is not None
            yield Explanation(encoder.name, f"{one.index.key(row)} {words.caption!r}", _state(cache, origin, known))
    for encoder in origins.caption_readers:
        for text in one.index.captions(row) or ("",):
            words = Words(text, one.index.facts(row))
            yield Explanation(encoder.name, repr(text), _state(cache, origins.caption(encoder, words), known))


def _state(cache: Cache, origin: Origin, known: Sequence[Mapping[str, str]]) -> str:
    if origin.key in cache:
        return "cached" if cache.get(origin.key) is not None else "damaged: it is encoded again by the next run"
    wanted = {"fingerprint": origin.fingerprint, **origin.reads}
    # Of entries of the same file (by name or by bytes) or caption, the one that differs least says what changed.
    related = [record for record in known if record["encoder"] == origin.encoder and _related(record, origin)]
    if not related:
        return "not cached: nothing was ever encoded from it"
    closest = min(related, key=lambda record: len(_differences(record, wanted)))
    changed = [f"{name} was {closest.get(name)}, is {wanted[name]}" for name in _differences(closest, wanted)]
    return f"not cached: {'; '.join(changed)}"


def _related(record: Mapping[str, str], origin: Origin) -> bool:
    return (bool(origin.sample) and record.get("sample") == origin.sample) or any(
        name in origin.reads and record.get(name) == origin.reads[name] for name in ("bytes", "caption")
    )


def _differences(record: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    return [name for name, value in wanted.items() if record.get(name) != value]
