"""What ``tomllib`` lacks: on which line each key is written, and values as text."""

from __future__ import annotations

import json
import tomllib
from typing import Any

Location = tuple[str | int, ...]


def statement_lines(text: str) -> dict[Location, int]:
    """The line, from 1, of every table header and every key of a valid TOML text.

    A TOML text is a row of statements that each end with a line, so a statement is complete at the first line with
    which it parses, and what it parses to names its keys.
    """
    lines: dict[Location, int] = {}
    counts: dict[Location, int] = {}
    table: Location = ()
    statement, start = "", 1
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        if not statement:
            start = number
        statement += line
        # Only a closing mark can end a statement of several lines; parsing at each of them would be quadratic.
        if start != number and not any(mark in line for mark in ("]", "}", '"""', "'''")):
            continue
        try:
            parsed = tomllib.loads(statement)
        except tomllib.TOMLDecodeError:
            continue
        if statement.lstrip().startswith("["):
            table = _header(parsed, is_array=statement.lstrip().startswith("[["), counts=counts)
            lines[table] = start
        else:
            for location in _keys(parsed):
                lines.setdefault((*table, *location), start)
        statement = ""
    return lines


def _header(parsed: dict[str, Any], *, is_array: bool, counts: dict[Location, int]) -> Location:
    """Where the statements after a header go. counts: how many tables each array has so far."""
    names: list[str] = []
    inner: Any = parsed
    while inner:
        if isinstance(inner, list):
            inner = inner[0]
            continue
        names.append(next(iter(inner)))
        inner = inner[names[-1]]
    location: Location = ()
    for name in names[:-1]:
        location = (*location, name)
        if location in counts:
            location = (*location, counts[location] - 1)
    location = (*location, names[-1])
    if is_array:
        counts[location] = counts.get(location, 0) + 1
        location = (*location, counts[location] - 1)
    return location


def _keys(parsed: Any, location: Location = ()) -> list[Location]:
    found = [location] if location else []
    items = parsed.items() if isinstance(parsed, dict) else enumerate(parsed) if isinstance(parsed, list) else ()
    for key, value in items:
        found += _keys(value, (*location, key))
    return found


def value_text(value: Any) -> str:
    """A plain value as TOML writes it; ``unset`` for None, for which TOML has no word. Tables lose their Nones."""
    if value is None:
        return "unset"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {value_text(item)}" for key, item in value.items() if item is not None) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(value_text(item) for item in value) + "]"
    # A basic string of TOML is a string of JSON; numbers and booleans are the same in both.
    return json.dumps(value, ensure_ascii=False)
