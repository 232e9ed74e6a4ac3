"""A sample of ``nox -s crash``: a run that is killed and resumed ends with the weights of one that is not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from st.testing.runs import write_photos


def test_killed_runs_end_with_the_same_weights(tmp_path):
    photos = write_photos(tmp_path / "photos", count=16)
    script = Path(__file__).with_name("crash.py")
    told = f"--kinds adapter --kills 2 --size tiny --steps 20 --seed 1 --photos {photos}"

    trial = subprocess.run([sys.executable, str(script), *told.split()], capture_output=True, text=True, check=False)

    assert trial.returncode == 0, trial.stdout + trial.stderr
    counts = json.loads(trial.stdout.splitlines()[-1])
    assert counts["kills"] == 2
    assert counts["identical"] == counts["runs"] >= 1
