"""JSON files of others, or that lay on a disk for long: an object, or one sentence on what is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class JsonUnusable(ValueError):
    """A text that is not JSON, or not an object, or holds what no text file of ours could."""


def parse_object(text: str) -> dict[str, Any]:
    """The object that a JSON text is. Raises JsonUnusable."""
    try:
        data = json.loads(text)
        # Halves of surrogate pairs can be written with an escape, and neither printed nor saved.
        json.dumps(data, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise JsonUnusable("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise JsonUnusable(f"it is not JSON (line {error.lineno}: {error.msg})") from error
    except UnicodeEncodeError as error:
        raise JsonUnusable("it holds half of a surrogate pair, which is no character") from error
    except ValueError as error:
        raise JsonUnusable("it holds a number with thousands of digits") from error
    if not isinstance(data, dict):
        raise JsonUnusable(f"it is not an object but {type(data).__name__}")
    return data


def read_object(path: Path) -> dict[str, Any]:
    """The object that a file holds. Raises JsonUnusable, also where the file is not UTF-8, and OSError."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise JsonUnusable(f"it is not UTF-8 (byte {error.start})") from error
    return parse_object(text)
