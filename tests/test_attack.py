"""A sample of ``nox -s attack``: what is malformed, killed or full ends in one clear error, and nothing is silent."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from attack_bench import Attack, Ended, Place, judge, nothing


def test_a_sample_of_attacks_ends_in_no_class_that_must_stay_empty():
    script = Path(__file__).with_name("attack.py")

    trial = subprocess.run(
        [sys.executable, str(script), "--sample", "--seed", "1"], capture_output=True, text=True, check=False
    )

    assert trial.returncode == 0, trial.stdout + trial.stderr
    told = json.loads(trial.stdout.splitlines()[-1])
    assert told["attacks"] >= 16
    assert told["failed"] == {}


TRACEBACK = 'Traceback (most recent call last):\n  File "x.py"\nValueError: no\n'


@pytest.mark.parametrize(
    ("ended", "kind"),
    [
        (Ended(1, TRACEBACK, 1.0), "TRACEBACK"),
        (Ended(-11, "", 1.0), "TRACEBACK"),
        (Ended(0, "", 1.0, hung=True), "HUNG"),
        (Ended(0, "step 1/4", 1.0), "SILENT"),
        (Ended(0, "left out: 3.png", 1.0), "ok"),
        (Ended(2, "Error: 3.png: is no picture", 1.0), "one error"),
        (Ended(2, "Error: something is wrong", 1.0), "UNCLEAR"),
        (Ended(2, "Error: 3.png\n" + "why\n" * 9, 1.0), "UNCLEAR"),
    ],
)
def test_an_end_is_judged(tmp_path, ended, kind):
    attack = Attack("a picture", nothing, names=("3.png",))

    assert judge(attack, Place(tmp_path, {}), ended)[0] == kind


def test_code_that_ran_and_checkpoints_that_are_gone_are_found(tmp_path):
    place, attack = Place(tmp_path, {}), Attack("a picture", nothing, names=("3.png",))
    place.kept[tmp_path / "weights"] = "digest"

    assert judge(attack, place, Ended(2, "Error: 3.png", 1.0))[0] == "LOST"
    place.ran.touch()
    assert judge(attack, place, Ended(2, "Error: 3.png", 1.0))[0] == "RAN CODE"
