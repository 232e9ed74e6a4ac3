"""What nothing can be done with is one message, before anything is loaded."""

from __future__ import annotations

import pytest

from st.testing import TinyRunner
from st.testing.runs import call_cli


@pytest.mark.parametrize("accepted", [(), ("--accept", "batch")])
def test_a_damaged_record_of_the_run_is_one_error(tiny_run: TinyRunner, accepted: tuple[str, ...]) -> None:
    run = tiny_run()
    (run.directory / "run.json").write_text("[" * 100_000)

    again = call_cli("train", tiny_run.file(resume=run), "--resume", *accepted)

    assert again.code == 1
    assert "run.json' is damaged: it is nested too deeply" in again.err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ('output="a\\u0000b"', "holds a NUL"),
        ("dataset.0.weight=inf", "weight"),
        ("optimizer.lr=nan", "lr"),
        ("dataset=5", "a run has a list of data sets"),
        ("accumulate=100000000000", "accumulate"),
        ("ranks.processes=100000", "processes"),
    ],
)
def test_a_value_that_nothing_can_be_done_with_is_refused(tiny_run: TinyRunner, change: str, said: str) -> None:
    done = call_cli("train", tiny_run.file(), "--set", change, "--dry-run")

    assert done.code == 2
    assert said in done.err and "Traceback" not in done.err
