"""``st reference`` prints pages and keeps the blocks of files current."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from st.cli import run

Capture = pytest.CaptureFixture[str]


@pytest.mark.usefixtures("quill")
def test_stale_block_ends_with_1_until_written(tmp_path: Path, capsys: Capture) -> None:
    page = tmp_path / "README.md"
    page.write_text("<!-- generated: st reference options quill -->\n<!-- end -->\n")

    assert run(["reference", "blocks", "--check", str(page)]) == 1
    assert run(["reference", "blocks", "--write", str(page)]) == 0
    assert run(["reference", "blocks", "--check", str(page)]) == 0
    assert "`model.checkpoint`" in page.read_text()


@pytest.mark.usefixtures("quill")
def test_schema_is_that_of_the_run_files_plugins(run_toml: Callable[[str], Path], capsys: Capture) -> None:
    path = run_toml('plugins = ["quill"]')

    assert run(["reference", "schema", str(path)]) == 0

    assert "checkpoint" in json.loads(capsys.readouterr().out)["properties"]["model"]["properties"]


def test_options_of_a_section_are_printed(capsys: Capture) -> None:
    assert run(["reference", "options", "clip"]) == 0

    assert "| `clip.norm` | float (\u2265 0) | `1.0` |" in capsys.readouterr().out


def test_hooks_are_printed(capsys: Capture) -> None:
    assert run(["reference", "hooks"]) == 0

    assert capsys.readouterr().out.startswith("## `st_register(register: Registrar) -> None`")
