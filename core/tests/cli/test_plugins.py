"""``st plugins`` says what is installed and whether it works."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from st.cli import run

Package = Callable[..., Path]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def on_path(quill: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The packages of the test, also for processes that it starts."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(quill), os.environ.get("PYTHONPATH", "")]))


def test_list_holds_what_is_installed_and_what_cannot_be_used(quill: Path, package: Package, capsys: Capture) -> None:
    package("st-old", "0.2", {"st.v0.hooks": {"old": "st_old:Old"}})

    code = run(["plugins"])

    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    assert any(line.split()[:4] == ["quill", "models", "st-quill", "1.2"] for line in lines)
    assert any("speaks plugin API 0, not 1: cannot be used" in line for line in lines)


@pytest.mark.usefixtures("on_path")
def test_check_of_a_plugin_that_works_says_ok(capsys: Capture) -> None:
    assert run(["plugins", "check", "quill"]) == 0
    assert capsys.readouterr().out == "ok\n"


@pytest.mark.usefixtures("on_path")
def test_check_of_a_plugin_that_fails_shows_the_traceback(package: Package, capsys: Capture) -> None:
    package("st-broken", "0.2", {"st.v1.hooks": {"broken": "st_broken:Broken"}}, st_broken="import doesnotexist")

    code = run(["plugins", "check", "broken"])

    said = capsys.readouterr().out
    assert code == 2
    assert "Traceback (most recent call last):" in said
    assert "plugin 'broken' (st-broken 0.2) failed to import: ModuleNotFoundError" in said


@pytest.mark.usefixtures("on_path")
def test_check_refuses_options_without_help(package: Package, capsys: Capture) -> None:
    source = '''
        import st

        class Inner(st.Options):
            depth: int = 1

        class Silent:
            """Say nothing of its options."""

            class Options(st.Options):
                told: int = 1
                """How often."""
                factor: float = 2.0
                inner: Inner = Inner()
                """More."""

            def __init__(self, options): ...
    '''
    package("st-silent", "0.2", {"st.v1.hooks": {"silent": "st_silent:Silent"}}, st_silent=source)

    code = run(["plugins", "check", "silent"])

    assert code == 2
    assert "plugin 'silent' (st-silent 0.2): factor, inner.depth: options without help." in capsys.readouterr().out


@pytest.mark.usefixtures("on_path")
def test_check_names_a_plugin_that_imports_too_much(package: Package, capsys: Capture) -> None:
    source = (
        "import sys, types\nsys.modules['torch'] = types.ModuleType('torch')\n"
        + '''
import st
class Heavy:
    """Import at once."""
    class Options(st.Options):
        """None."""
    def __init__(self, options): ...
'''
    )
    package("st-heavy", "1.0", {"st.v1.hooks": {"heavy": "st_heavy:Heavy"}}, st_heavy=source)

    run(["plugins", "check", "heavy"])

    assert capsys.readouterr().out == "ok; imports torch at once, which slows every command\n"


def test_why_says_what_a_name_stands_for(quill: Path, capsys: Capture) -> None:
    code = run(["plugins", "why", "quill"])

    said = capsys.readouterr().out
    assert code == 0
    assert "plugin 'quill' (st-quill 1.2) is the class st_quill:Quill." in said
    assert f"Installed in {quill}." in said


def test_why_of_an_unknown_name_ends_with_2(quill: Path, capsys: Capture) -> None:
    assert run(["plugins", "why", "quil"]) == 2
    assert "Did you mean 'quill'?" in capsys.readouterr().err
