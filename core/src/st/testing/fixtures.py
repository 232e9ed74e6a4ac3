"""Fixtures for the tests of plugins: ``pytest -p st.testing.fixtures``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from st.testing.runs import CliResult, TinyRunner, call_cli


@pytest.fixture
def run_file(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a run file: ``run_file("steps = 3")`` is its path."""

    def write(text: str) -> Path:
        file = tmp_path / "run.toml"
        file.write_text(text, encoding="utf-8")
        return file

    return write


@pytest.fixture
def st_cli() -> Callable[..., CliResult]:
    """Runs a command in this process: ``st_cli("train", file, "--dry-run").code``."""
    return call_cli


@pytest.fixture
def tiny_run(tmp_path: Path) -> TinyRunner:
    """Trains TinyFamily for three steps: ``tiny_run(plugins=["my-hook"]).metrics()``."""
    return TinyRunner(tmp_path / "tiny-runs")
