"""``st sample`` renders from a checkpoint of a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from st.testing.runs import CliResult, TinyRunner


def test_a_prompt_is_rendered_from_a_checkpoint(
    tiny_run: TinyRunner, st_cli: Callable[..., CliResult], tmp_path: Path
) -> None:
    run = tiny_run(text="[validation]\nsteps = 2\nguidance = 1.0")
    command = ("sample", run.directory, "--trust", "--prompt", "a red circle", "--size", "40x64", "--seed", "3")

    first = st_cli(*command)
    named = st_cli(*command, "--checkpoint", "3", "--out", tmp_path / "named.png")

    assert (first.code, named.code) == (0, 0), first.err + named.err
    rendered = Path(first.out.strip())
    assert rendered.parent == run.directory / "samples"
    assert named.out.strip() == str(tmp_path / "named.png")
    assert rendered.read_bytes() == (tmp_path / "named.png").read_bytes()
    with Image.open(rendered) as picture:
        assert picture.size == (40, 64)


def test_a_fact_without_a_text_is_refused(st_cli: Callable[..., CliResult], tmp_path: Path) -> None:
    refused = st_cli("sample", tmp_path, "--prompt", "x", "--fact", "bpm")

    assert refused.code == 1
    assert "--fact 'bpm' says nothing" in refused.err


def test_a_size_that_cannot_be_read_is_refused(st_cli: Callable[..., CliResult], tmp_path: Path) -> None:
    refused = st_cli("sample", tmp_path, "--prompt", "x", "--size", "big")

    assert refused.code == 1
    assert "'big' is no size" in refused.err


def test_a_file_that_a_saved_run_names_is_not_run_unasked(
    tiny_run: TinyRunner, st_cli: Callable[..., CliResult], tmp_path: Path
) -> None:
    run = tiny_run(steps=1)
    (tmp_path / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Theirs: pass\n")
    settings = json.loads((run.directory / "run.json").read_text())
    settings["plugins"] = ["pocket", f"{tmp_path}/theirs.py:Theirs"]
    (run.directory / "run.json").write_text(json.dumps(settings))

    refused = st_cli("sample", run.directory, "--prompt", "x")

    assert refused.code == 1
    assert "theirs.py:Theirs" in refused.err and "--trust" in refused.err
    assert not (tmp_path / "ran").exists()
