from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from PIL import Image

from st.testing.runs import TINY
from st.testing.subjects.tiny import TinyFamily

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from st.testing.runs import CliResult

    Cli = Callable[..., CliResult]
    Write = Callable[[str], Path]


@pytest.fixture
def file(tmp_path: Path, run_file: Write) -> Path:
    TinyFamily.tiny(tmp_path / "weights")
    (tmp_path / "photos").mkdir()
    for number in range(3):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(tmp_path / "photos" / f"{number}.png")
        (tmp_path / "photos" / f"{number}.txt").write_text("a cat")
    return run_file(
        f"""
plugins = ["{TINY}:TinyFamily"]
output = "{tmp_path / "out"}"
steps = 1
[model]
checkpoint = "{tmp_path / "weights"}"
[[dataset]]
url = "{tmp_path / "photos"}"
resolution = 64
"""
    )


def test_check_ends_with_0_where_training_would_start(file: Path, st_cli: Cli) -> None:
    result = st_cli("data", "check", file)

    assert result.code == 0, result.err
    assert "3 samples in 1 bucket" in result.out
    assert "training would start" in result.out


def test_check_ends_with_1_where_training_would_stop(file: Path, st_cli: Cli) -> None:
    result = st_cli("data", "check", file, "--set", "batch=4")

    assert result.code == 1
    assert "TRAINING WOULD STOP: data set 'photos': 1 bucket has too few samples" in result.out


def test_check_writes_nothing(file: Path, st_cli: Cli) -> None:
    before = sorted(file.parent.rglob("*"))

    st_cli("data", "check", file)

    assert sorted(file.parent.rglob("*")) == before


def test_show_writes_one_page(file: Path, st_cli: Cli) -> None:
    page = file.parent / "pages" / "data.html"

    result = st_cli("data", "show", file, "--output", page)

    assert result.code == 0, result.err
    assert page.read_text().count("<figure>") == 3
    assert str(page) in result.out


def test_a_run_without_a_data_set_is_told_so(file: Path, st_cli: Cli) -> None:
    text = file.read_text()
    file.write_text(text[: text.index("[[dataset]]")])

    result = st_cli("data", "check", file)

    assert result.code == 2
    assert "the run file has no data set" in result.err
