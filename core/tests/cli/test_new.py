"""A generated plugin is complete, and a name that cannot work is refused."""

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from st.cli.new import Kind
from st.testing import CliResult

PLACEHOLDERS = ("DISTRIBUTION", "PACKAGE", "PLUGIN", "CLASS")


@pytest.mark.parametrize("kind", list(Kind))
def test_no_placeholder_is_left(kind: Kind, tmp_path: Path, st_cli: Callable[..., CliResult]) -> None:
    result = st_cli("new", kind, "my-thing", tmp_path / "made")

    assert result.code == 0
    for file in (tmp_path / "made").rglob("*"):
        text = str(file.relative_to(tmp_path)) + (file.read_text() if file.is_file() else "")
        assert [word for word in PLACEHOLDERS if word in text] == [], file


@pytest.mark.parametrize(
    ("kind", "group"),
    [("model", "models"), ("backend", "backends"), ("tracker", "trackers"), ("hook", "hooks"), ("command", "commands")],
)
def test_entry_point_leads_to_the_class(
    kind: str, group: str, tmp_path: Path, st_cli: Callable[..., CliResult]
) -> None:
    st_cli("new", kind, "my-thing", tmp_path / "made")

    project = tomllib.loads((tmp_path / "made" / "pyproject.toml").read_text())["project"]

    assert project["name"] == "st-my-thing"
    assert project["entry-points"] == {f"st.v1.{group}": {"my-thing": "st_my_thing:MyThing"}}


@pytest.mark.parametrize("name", ["My-Thing", "my_thing", "9lives", "a--b", "-a", "", "st-thing", "optimizer", "steps"])
def test_a_name_that_cannot_work_is_refused(name: str, tmp_path: Path, st_cli: Callable[..., CliResult]) -> None:
    result = st_cli("new", "hook", "--", name, tmp_path / "made")

    assert result.code == 1
    assert result.err.startswith("Error: ")
    assert not (tmp_path / "made").exists()


def test_a_close_name_is_suggested(tmp_path: Path, st_cli: Callable[..., CliResult]) -> None:
    assert "Try 'my-thing'." in st_cli("new", "hook", "My_Thing", tmp_path / "made").err


def test_nothing_is_overwritten(tmp_path: Path, st_cli: Callable[..., CliResult]) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "notes.txt").write_text("mine")

    result = st_cli("new", "hook", "my-thing", tmp_path / "made")

    assert result.code == 1
    assert result.err == f"Error: {str(tmp_path / 'made')!r} exists already.\n  Name another folder.\n"
    assert [file.name for file in (tmp_path / "made").iterdir()] == ["notes.txt"]
