"""Pruning: what a cache holds, and taking out of it what is of no use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from st.data.cache.cache import INDEXES, SHARDS
from st.data.cache.joint import texts_of
from st.data.cache.origins import MASK, Origins, latent_size, masked_rows
from st.data.cache.shard import DAMAGED, unpack_records
from st.data.digest import digest_of
from st.data.sets.memory import damaged_tables
from st.data.sets.prepare import PreparedSet
from st.data.sets.words import words_for

if TYPE_CHECKING:
    from st.data.cache.cache import Cache
    from st.data.cache.shard import ShardIndex
    from st.data.sets.words import Words

ORPHAN_SECONDS = 3600.0
"""Age of a shard without an index at which its writer is taken to be dead."""


@dataclass(slots=True)
class Pruned:
    """What was taken out, or would be: entries by reason, and bytes."""

    entries: Counter[str] = field(default_factory=Counter)
    size_bytes: int = 0


def records(cache: Cache) -> Iterator[tuple[ShardIndex, int, dict[str, str]]]:
    """(shard, row, what the entry was made from) of every entry."""
    for index in cache.contents.indexes:
        for row, record in enumerate(unpack_records(cache.store.read(INDEXES + index.name))):
            yield index, row, record


def usage(cache: Cache) -> dict[tuple[str, str], tuple[int, int]]:
    """(encoder, fingerprint) -> (entries, bytes)."""
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for index, row, record in records(cache):
        name = (record["encoder"], record["fingerprint"])
        entries, size_bytes = found.get(name, (0, 0))
        found[name] = (entries + 1, size_bytes + _size(index, row))
    return found


def prune(cache: Cache, wanted: Callable[[str], bool] | None, now: float, dry_run: bool = False) -> Pruned:
    """Take out entries that are damaged, stored twice or not ``wanted`` (by key; None wants all), tables that are
    damaged, and shards without an index.

    Reads every entry. Those that stay are written to new shards before their old one is deleted, so that a process that
    is killed meanwhile loses none. now: seconds since 1970. Other processes should not be reading the cache.
    """
    pruned = Pruned()
    for _ in cache.verify():
        pass
    for index in cache.contents.indexes:
        kept = []
        for row in range(len(index)):
            reason = _reason(cache, index, row, wanted)
            if reason:
                pruned.entries[reason] += 1
                pruned.size_bytes += _size(index, row)
            else:
                kept.append(row)
        if len(kept) < len(index) and not dry_run:
            _rewrite(cache, index, kept)
    for key in [*cache.damaged_indexes, *(key for key, damaged in damaged_tables(cache.store) if damaged)]:
        pruned.entries["damaged tables"] += 1
        pruned.size_bytes += cache.store.size_bytes(key)
        if not dry_run:
            cache.store.delete(key)
    named = {index.name for index in cache.contents.indexes}
    for entry in list(cache.store.list(SHARDS)):
        if entry.key.removeprefix(SHARDS) not in named and entry.modified < now - ORPHAN_SECONDS:
            pruned.entries["in a shard without an index"] += 1
            pruned.size_bytes += entry.size_bytes
            if not dry_run:
                cache.store.delete(entry.key)
    if not dry_run:
        cache.refresh()
    return pruned


def _reason(cache: Cache, index: ShardIndex, row: int, wanted: Callable[[str], bool] | None) -> str:
    """Why an entry is of no use; '' where it is."""
    key = index.key(row)
    if index.trust[row] == DAMAGED:
        return "damaged"
    first, first_row = next(cache.contents.find(key))
    if first is not index or first_row != row:
        return "stored twice"
    return "" if wanted is None or wanted(key) else "not used by this run file"


def _rewrite(cache: Cache, index: ShardIndex, kept: list[int]) -> None:
    own = unpack_records(cache.store.read(INDEXES + index.name))
    cache.copy((index.key(row), own[row]) for row in kept)
    cache.store.delete(INDEXES + index.name)
    cache.store.delete(SHARDS + index.name)


def _size(index: ShardIndex, row: int) -> int:
    return sum(place[3] - place[2] for place in index.layout(row).values())


def needed_keys(sets: Sequence[PreparedSet], origins: Origins, cache: Cache, prompts: Sequence[Words]) -> set[str]:
    """The keys of all entries that training on these sets needs, masks at the size that their latents have now.

    Reads the files whose digests are not known. Raises SampleUnreadable.
    """
    readers = origins.caption_readers
    keys = {origins.caption(encoder, one).key for encoder in readers for one in words_for(encoder, sets, prompts)}
    for one in sets:
        for row in range(len(one.index)):
            one.digest(row)
            keys |= {origin.key for e in origins.media_readers if (origin := origins.media(e, one, row))}
        for other in one.references:
            for row in range(len(other.index)):
                other.digest(row)
                keys |= {origin.key} if (origin := origins.media(origins.references, other, row)) else set()
        for encoder in origins.joint_readers:
            pairs = ((row, words) for row in range(len(one.index)) for words in texts_of(one, row, encoder))
            joint = (origins.joint(encoder, one, row, words) for row, words in pairs)
            keys |= {origin.key for origin in joint if origin}
        for row in masked_rows(one):
            size = latent_size(origins, cache, one, row)
            origins.masks.setdefault(one.name, {})[row] = digest_of(one.backend.read(one.index.extras(row)[MASK]))
            origin = origins.mask(one, row, *size) if size else None
            keys |= {origin.key} if origin else set()
    return keys
