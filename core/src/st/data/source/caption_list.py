"""Caption lists: one JSON object a line, each naming a file of the data set."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

from st.data.source import captions
from st.errors import DataUnusable, SampleUnreadable

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from st.data.source.folder import FolderBackend

    Described = tuple[tuple[str, ...], Mapping[str, str]]


def read_list(backend: FolderBackend, keys: Collection[str], notes: list[str]) -> Mapping[str, Described]:
    """Captions and facts by key out of the data set's list. Raises DataUnusable naming the line.

    keys: of all samples. A name that none of them has is taken for the one that differs in how it is spelled only: with
    backslashes, "./" in front, or another Unicode form of the same letters. notes: of names that no sample has, and of
    names that are there several times.
    """
    name = backend.options.caption_file
    try:
        text = captions.read(backend.store.read(name), name)
    except FileNotFoundError as error:
        raise DataUnusable(
            f"{backend.url!r} has no caption list {name!r}.", fix="Set caption_file or caption."
        ) from error
    except SampleUnreadable as error:
        raise DataUnusable(f"caption list {name!r} cannot be used: {error.reason}") from error
    spelled = {_plain(key): key for key in keys}
    found: dict[str, Described] = {}
    unknown: list[str] = []
    twice: list[str] = []
    # Not splitlines: what else it splits at may stand in a JSON text as it is.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        written, described = _line(name, number, line)
        key = written if written in keys else spelled.get(_plain(written))
        if key is None:
            unknown.append(written)
            continue
        if key in found:
            twice.append(key)
        found[key] = described
    notes += _told(name, unknown, "name no file of the data set", "they are not used")
    notes += _told(name, twice, "name a file that an earlier line names", "the last one counts")
    return found


def _told(name: str, written: list[str], what: str, then: str) -> list[str]:
    return [f"lines of {name!r} that {what}: {len(written)}, such as {written[0]!r}; {then}"] if written else []


def _plain(name: str) -> str:
    """One spelling of a path: slashes, no "./" in front, composed letters."""
    plain = unicodedata.normalize("NFC", name.replace("\\", "/"))
    while plain.startswith("./"):
        plain = plain[2:]
    return plain


def _line(name: str, number: int, line: str) -> tuple[str, Described]:
    try:
        row = captions.parsed(line)
    except ValueError as error:
        raise DataUnusable(f"{name}:{number} is not JSON: {error}") from error
    key = row.get("file_name") if isinstance(row, dict) else None
    if not isinstance(key, str):
        raise DataUnusable(f"{name}:{number} has no 'file_name'.", fix='Write {"file_name": "a.jpg", "text": "a cat"}.')
    return key, captions.described(f"{name}:{number}", key, row)
