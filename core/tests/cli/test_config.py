"""``st config show`` prints a run file that means the same."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from st.cli import run

RUN = """
    plugins = ["quill"]
    steps = 10
    output = "runs/first"
    [[dataset]]
    url = "file:photos"
    [optimizer]
    lr = 0.5
"""


@pytest.mark.usefixtures("quill")
def test_what_is_shown_is_a_run_file(run_toml: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "show", str(run_toml(RUN))]) == 0

    shown = tomllib.loads(capsys.readouterr().out)
    assert shown["optimizer"]["lr"] == 0.5
    assert shown["optimizer"]["kind"] == "adamw"
    assert shown["dataset"][0]["url"] == "file:photos"
    assert shown["model"] == {"checkpoint": "quill-tiny", "scale": 1.0}


@pytest.mark.usefixtures("quill")
def test_shown_run_file_shows_itself(
    run_toml: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["config", "show", str(run_toml(RUN))])
    first = capsys.readouterr().out
    again = tmp_path / "again.toml"
    again.write_text(first)

    assert run(["config", "show", str(again)]) == 0
    assert capsys.readouterr().out == first


@pytest.mark.usefixtures("quill")
def test_origin_is_shown_on_request(run_toml: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    run(["config", "show", str(run_toml(RUN)), "--origin", "--set", "batch=4"])

    lines = capsys.readouterr().out.splitlines()
    assert "lr = 0.5  # run.toml:7" in lines
    assert "batch = 4  # --set" in lines
    assert "seed = 42  # default" in lines
