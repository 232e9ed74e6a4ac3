"""A tiny checkpoint, and the family on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from st_qwen_image import QwenImage


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that draws from text, written once."""
    path = tmp_path_factory.mktemp("qwen-image") / "tiny"
    QwenImage.tiny(path)
    return path


@pytest.fixture
def family(tmp_path: Path) -> QwenImage:
    """The family on a tiny checkpoint of its own."""
    return QwenImage.tiny(tmp_path / "tiny")
