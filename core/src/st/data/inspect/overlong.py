"""Captions that an encoder does not read to their end: counted, and the worst named."""

from __future__ import annotations

from heapq import nlargest
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from st.data.encoder import Encoder
    from st.data.sets.prepare import PreparedSet
    from st.notes import Notes

LONGEST = 1000
"""Captions that are measured, per data set: the longest by characters, which are those that can be cut."""

NAMED = 10
"""Captions that are named, per data set and encoder."""

SEARCHED = 100_000
"""Samples that are looked through for the names."""


def report_overlong(sets: Iterable[PreparedSet], encoders: Sequence[Encoder], report: Notes) -> None:
    """Warn of captions that are longer than an encoder reads, once per data set and encoder."""
    for one in sets:
        longest = nlargest(LONGEST, one.index.distinct_captions(), key=len)
        for encoder in encoders:
            if encoder.reads_captions:
                _report(one, encoder, longest, report)


def _report(one: PreparedSet, encoder: Encoder, longest: Sequence[str], report: Notes) -> None:
    counted = ((text, encoder.count_tokens(text)) for text in longest)
    cut = [(text, count) for text, count in counted if count is not None and count[0] > count[1]]
    if not cut:
        return
    more = "at least " if len(cut) == LONGEST else ""
    worst = max(count[0] for _, count in cut)
    report.warn(
        f"data set {one.name!r}: {more}{len(cut)} captions are longer than {encoder.name!r} reads "
        f"({cut[0][1][1]} tokens; the longest has {worst}): their ends are not trained on"
    )
    named = dict(sorted(cut, key=lambda item: -item[1][0])[:NAMED])
    keys = _keys(one, set(named))
    for text, (tokens, read) in named.items():
        report.note(
            f"{keys.get(text, '')}: {tokens} tokens, {encoder.name} reads {read}",
            kind="caption",
            dataset=one.name,
            key=keys.get(text, ""),
            caption=text,
            tokens=tokens,
            read=read,
        )


def _keys(one: PreparedSet, wanted: set[str]) -> dict[str, str]:
    """Which sample has each of these captions: the first one."""
    found: dict[str, str] = {}
    for row in range(min(len(one.index), SEARCHED)):
        for text in one.index.captions(row):
            if text in wanted:
                found.setdefault(text, one.index.key(row))
        if len(found) == len(wanted):
            break
    return found
