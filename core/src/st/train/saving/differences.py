"""Where two resolved configurations differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Difference:
    """One setting that two plain configurations have differently; None for a setting that is not set."""

    key: str
    old: Any
    new: Any


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """Where two results of ``RunConfig.plain`` differ, in the order of the new one, then what only the old one has."""
    before, after = _flat(old), _flat(new)
    keys = [*after, *(key for key in before if key not in after)]
    return [Difference(key, before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)]


def _flat(data: Any, location: tuple[str | int, ...] = ()) -> dict[str, Any]:
    if isinstance(data, Mapping):
        items: list[tuple[str | int, Any]] = list(data.items())
    elif isinstance(data, (list, tuple)) and data and all(isinstance(item, Mapping) for item in data):
        items = list(enumerate(data))
    else:
        return {".".join(map(str, location)): list(data) if isinstance(data, tuple) else data}
    return {key: leaf for step, value in items for key, leaf in _flat(value, (*location, step)).items()}
