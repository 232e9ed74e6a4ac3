"""The fixtures do what a command line does."""

from collections.abc import Callable
from pathlib import Path

import pytest

from st.testing import CliResult, TinyRunner


def test_a_tiny_run_ends_with_weights_and_losses(tiny_run: TinyRunner) -> None:
    run = tiny_run(steps=2)

    assert run.outcome == "finished"
    assert len(run.metrics()["loss"]) == 2
    assert run.weights()
    assert run.warnings() == []


def test_a_setting_reaches_the_run(tiny_run: TinyRunner) -> None:
    run = tiny_run(text="[optimizer]\nkind = 'sgd'\nlr = 0.25")

    assert run.metrics()["lr"] == [0.25, 0.25, 0.25]


def test_a_run_that_fails_says_why(tiny_run: TinyRunner) -> None:
    with pytest.raises(AssertionError, match="has no option 'learning_rate'"):
        tiny_run(text="[optimizer]\nlearning_rate = 1.0")


def test_a_command_gives_its_status_and_what_it_printed(
    st_cli: Callable[..., CliResult], run_file: Callable[[str], Path]
) -> None:
    result = st_cli("train", run_file("steps = 3"), "--dry-run")

    assert result.code == 2
    assert "output: must be set" in result.err
    assert result.out == ""
