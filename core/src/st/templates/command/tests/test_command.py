"""The command keeps the promises of every command, and its own."""

from collections.abc import Callable
from pathlib import Path

from st.testing import CliResult, CommandTests, TinyRunner


class TestConformance(CommandTests):
    plugin = "PLUGIN"


def test_it_says_how_far_a_run_is(st_cli: Callable[..., CliResult], tiny_run: TinyRunner) -> None:
    run = tiny_run(steps=2)

    assert st_cli("PLUGIN", run.directory).out == "step 2 of 2, finished\n"


def test_a_folder_without_a_run_is_refused(st_cli: Callable[..., CliResult], tmp_path: Path) -> None:
    result = st_cli("PLUGIN", tmp_path)

    assert result.code == 1
    assert "holds no run" in result.err
