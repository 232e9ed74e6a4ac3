"""Which existing name a mistyped one is closest to."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def closest(word: str, names: Iterable[str], limit: int = 3) -> list[str]:
    """The names that ``word`` may have been meant as, best first; case does not count."""
    by_lower = {name.lower(): name for name in names}
    return [by_lower[match] for match in get_close_matches(word.lower(), by_lower, n=limit)]


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """``Did you mean 'first'?`` with up to three names, or ''."""
    matches = [repr(name) for name in closest(word, names)]
    return f"Did you mean {either(matches)}?" if matches else ""


def either(words: Iterable[str]) -> str:
    """``a``, ``a or b``, ``a, b or c``."""
    *firsts, last = words
    return f"{', '.join(firsts)} or {last}" if firsts else last
