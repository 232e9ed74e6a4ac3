"""``st sample`` renders from a checkpoint of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from st.testing.runs import CliResult, TinyRunner


def test_a_prompt_is_rendered_from_a_checkpoint(
    tiny_run: TinyRunner, st_cli: Callable[..., CliResult], tmp_path: Path
) -> None:
    run = tiny_run(text="[validation]\nsteps = 2\nguidance = 1.0")
    command = ("sample", run.directory, "--prompt", "a red circle", "--size", "40x64", "--seed", "3")

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
