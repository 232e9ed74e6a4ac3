"""The benchmarks run, and their table says what the issue of speed asks. No time is looked at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SAMPLE = ("saving", "draws", "rows", "middleware", "restoring", "telling")
"""Of the benchmarks; ``nox -s bench`` runs them all, and fails where one measures less than it should."""


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What every benchmark at its toy size left behind."""
    folder = tmp_path_factory.mktemp("benchmarks")
    command = [sys.executable, str(ROOT / "benchmarks" / "run.py"), "--quick", "--output", str(folder), "--only"]
    variables = {name: value for name, value in os.environ.items() if name != "DIFFUSERS_EXAMPLES"}
    done = subprocess.run([*command, *SAMPLE], capture_output=True, text=True, env=variables | {"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def results(output: Path) -> dict[str, Any]:
    (file,) = output.glob("*.json")
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def test_each_benchmark_of_the_sample_gives_figures(results: dict[str, Any]) -> None:
    assert {one["group"] for one in results["figures"]} == set(SAMPLE)
    assert any(one["bar"] for one in results["figures"])


def test_figures_are_numbers_beside_their_floor(results: dict[str, Any]) -> None:
    for one in results["figures"]:
        if one["value"] is not None:
            assert isinstance(one["value"], float) and one["floor"] and one["ours"], one


def test_what_could_not_be_measured_says_so_in_place_of_a_number() -> None:
    program = (
        "from figure import Bar, Figure; from table import markdown; "
        "row = Figure('families', 'a step', None, 'x', Bar(1.0), detail='not measured: name a checkout'); "
        "assert row.holds is None; print(markdown([row], 'today', 'a machine', 'a command', 1.0))"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT / "benchmarks", capture_output=True, text=True, check=True
    )

    assert "| a step |  |  | not measured |" in done.stdout


def test_table_has_a_row_for_each_figure(output: Path, results: dict[str, Any]) -> None:
    lines = (output / "benchmarks.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| ")]

    assert [row.split(" | ")[0].removeprefix("| ") for row in rows[2:]] == [one["what"] for one in results["figures"]]
    assert {row.count("|") for row in rows} == {7}


def test_page_names_date_command_and_machine_in_words(output: Path, results: dict[str, Any]) -> None:
    text = (output / "benchmarks.md").read_text(encoding="utf-8")

    assert f"Measured on {results['date']}" in text and "`nox -s bench`" in text and results["machine"] in text
    assert not [word for word in (str(ROOT), os.uname().nodename, str(output)) if word in text]


def test_what_needs_an_accelerator_runs_at_toy_size_without_one() -> None:
    case = ["--only", "flux, 512 px, batch 1", "int8-quanto"]
    command = [sys.executable, str(ROOT / "benchmarks" / "accelerator.py"), "--tiny", "--steps", "1", *case]

    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})

    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = done.stdout.splitlines()
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[0].startswith("flux, 512 px, batch 1, LoRA on all+ffs, checkpointing, int8-quanto")
    assert all(float(cell) > 0 for cell in cells[1:4])
