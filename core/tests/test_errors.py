"""What is shown of problems."""

from __future__ import annotations

import pytest

from st.errors import Problem, ProblemsFound


@pytest.mark.parametrize(
    ("problem", "shown"),
    [
        (Problem("skip.last", "60 is beyond the 57 blocks"), "skip.last: 60 is beyond the 57 blocks"),
        (
            Problem("clip.norm", "run.toml:3: [clip] norm = -1: must be at least 0."),
            "run.toml:3: [clip] norm = -1: must be at least 0.",
        ),
        (Problem("optimizer.lr", "ST_OPTIMIZER__LR=x: must be a number."), "ST_OPTIMIZER__LR=x: must be a number."),
        (Problem("plugins.0", "no plugin is named 'a'."), "no plugin is named 'a'."),
        (Problem("", "nothing to train on"), "nothing to train on"),
    ],
)
def test_a_problem_is_shown_with_its_place_where_its_sentence_does_not_name_it(problem: Problem, shown: str) -> None:
    assert str(ProblemsFound([problem])) == shown
