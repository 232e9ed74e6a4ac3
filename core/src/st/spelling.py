"""Which existing name a mistyped one is closest to."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def closest(word: str, names: Iterable[str], limit: int = 3) -> list[str]:
    """The names that ``word`` may have been meant as, best first; case does not count.

    A name of initials is meant by its words (``learning_rate``: ``lr``), and its words by their initials.
    """
    by_lower = {name.lower(): name for name in names}
    word = word.lower()
    short = [name for name in by_lower if _initials(word) == name or _initials(name) == word]
    matches = dict.fromkeys([*short, *get_close_matches(word, by_lower, n=limit)])
    return [by_lower[match] for match in matches][:limit]


def _initials(words: str) -> str:
    parts = words.replace("-", "_").split("_")
    return "".join(part[:1] for part in parts) if len(parts) > 1 else ""


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """``Did you mean 'first'?`` with up to three names, or ''."""
    matches = [repr(name) for name in closest(word, names)]
    return f"Did you mean {either(matches)}?" if matches else ""


def either(words: Iterable[str]) -> str:
    """``a``, ``a or b``, ``a, b or c``."""
    *firsts, last = words
    return f"{', '.join(firsts)} or {last}" if firsts else last


def listed(words: Iterable[str]) -> str:
    """``a, b, c``, or ``nothing``."""
    return ", ".join(words) or "nothing"


def counted(number: int, noun: str) -> str:
    """``1 bucket``, ``3 buckets``"""
    return f"{number} {noun}{'' if number == 1 else 's'}"
