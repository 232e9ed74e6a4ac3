"""Waiting for another process, for tests."""

from __future__ import annotations

import time
from pathlib import Path


def wait_for(file: Path, text: str, seconds: float = 60) -> None:
    """Until a file holds a text. Raises AssertionError where it never does."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if file.exists() and text in file.read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f"{text!r} did not appear in {file.name}")
