"""Terminal: text of others, such as file names and captions, made fit to be printed."""

from __future__ import annotations

import unicodedata

KEPT = "\n\t"


def printable(text: str) -> str:
    """The text with every character that would steer a terminal, or is not seen at all, as its escape: ``\\x1b``."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_shown(letter) for letter in text)


def _shown(letter: str) -> str:
    if letter.isprintable() or letter in KEPT or letter == "\N{ZERO WIDTH JOINER}":
        return letter
    # Spaces of all scripts are not "printable" to Python, and harmless.
    if unicodedata.category(letter) == "Zs":
        return letter
    return letter.encode("unicode_escape").decode("ascii")
