"""Text of others steers no terminal."""

from __future__ import annotations

import pytest
from PIL import Image

from st.report.console import PlainConsole
from st.terminal import printable
from st.testing.runs import TINY, call_cli
from st.testing.subjects.tiny import TinyFamily


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain.png", "plain.png"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("over\rwritten", "over\\rwritten"),
        ("\x9b31m", "\\x9b31m"),
        ("gnp.\u202eexe", "gnp.\\u202eexe"),
        ("name\udcff.png", "name\\udcff.png"),
        ("Ärger 猫 👩\u200d🔬\u3000x", "Ärger 猫 👩\u200d🔬\u3000x"),
    ],
)
def test_what_steers_a_terminal_is_shown_as_its_escape(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_file_names_and_captions_reach_the_terminal_as_text(tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (64, 64)).save(photos / "a.png")
    (photos / "a.txt").write_text("a square")
    (photos / "\x1b[31mred.png").write_bytes(b"no picture")
    (tmp_path / "run.toml").write_text(
        f'plugins = ["{TINY}:TinyFamily"]\nsteps = 1\noutput = "out"\n[model]\ncheckpoint = "tiny"\n'
        '[[dataset]]\nurl = "photos"\nname = "\\u001b[2Jset"\nresolution = 64\nalign = 8\nmax_unreadable = 0.6\n'
    )
    TinyFamily.tiny(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)

    said = [call_cli("data", "check", "run.toml"), call_cli("train", "run.toml", "--dry-run", "--set", "x\x1b[1m=1")]

    assert [one.code for one in said] == [0, 2], said
    assert "\\x1b[31mred.png" in said[0].out
    assert not any("\x1b" in one.out + one.err for one in said)


def test_what_a_run_says_reaches_the_terminal_as_text(tmp_path):
    with (tmp_path / "log").open("w+", encoding="utf-8") as stream:
        PlainConsole(stream, 1.0).line("'\x1b[2J.png' cannot be used", "warning")
        stream.seek(0)

        assert stream.read() == "warning: '\\x1b[2J.png' cannot be used\n"
