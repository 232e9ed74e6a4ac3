"""What whole runs leave behind, and what they survive."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from st.report.log.events import read_events
from st.testing.runs import TINY, call_cli, write_photos
from st.testing.subjects.tiny import TinyFamily

HERE = Path(__file__).parent


def test_a_validator_of_a_plugin_is_asked_when_it_is_due(tiny_run):
    text = '[[validator]]\nkind = "brightness"\nevery = 2\nfactor = 10.0'

    run = tiny_run(plugins=[f"{HERE / 'brightness.py'}:Brightness"], text=text, steps=5)

    assert run.metrics()["brightness"] == [20.0, 40.0, 50.0]


def test_an_unknown_validator_is_refused_with_a_suggestion(tiny_run):
    text = '[[validator]]\nkind = "brightnes"\nevery = 2'

    with pytest.raises(AssertionError, match="Did you mean 'brightness'"):
        tiny_run(plugins=[f"{HERE / 'brightness.py'}:Brightness"], text=text)


def test_the_best_checkpoint_is_kept_besides_the_newest(tiny_run):
    text = (
        '[[validator]]\nkind = "brightness"\nevery = 1\nfactor = -1.0\n'
        '[checkpoint]\nevery = 2\nkeep = 1\nbest = "brightness"\nbest_is = "highest"'
    )

    run = tiny_run(plugins=[f"{HERE / 'brightness.py'}:Brightness"], text=text, steps=6)

    kept = sorted(path.name for path in (run.directory / "checkpoints").glob("step-*"))
    assert kept == ["step-00000001", "step-00000006"]
    assert json.loads((run.directory / "checkpoints" / "best.json").read_text())["step"] == 1


def test_a_metric_that_nobody_measures_stops_the_run_by_name(tiny_run):
    text = '[[validator]]\nkind = "brightness"\nevery = 1\n[checkpoint]\nbest = "sharpness"'

    with pytest.raises(
        AssertionError, match=r"checkpoint\.best = 'sharpness' is not measured\n\s+measured: brightness"
    ):
        tiny_run(plugins=[f"{HERE / 'brightness.py'}:Brightness"], text=text)


def test_a_run_leaves_what_made_it(tiny_run):
    run = tiny_run()

    manifest = json.loads((run.directory / "manifest.json").read_text())
    assert manifest["seed"] == 42
    assert manifest["engine"] == "single, 1 rank on cpu"
    assert manifest["data"]["photos"]["samples"] == 4
    assert {"torch", "diffusers"} <= manifest["libraries"].keys()
    assert "tiny" in manifest["plugins"]
    assert json.loads((run.directory / "run.json").read_text())["adapter"]["rank"] == 4
    assert (run.directory / "report.html").stat().st_size > 1000


def test_a_full_disk_stops_the_run_after_two_saves_and_loses_nothing(tmp_path):
    TinyFamily.tiny(tmp_path / "tiny")
    write_photos(tmp_path / "photos")
    file = tmp_path / "run.toml"
    file.write_text(
        f"""
plugins = ["{TINY}:TinyFamily"]
output = "{tmp_path}/out"
steps = 12
precision = "fp32"
device = "cpu"
[model]
checkpoint = "{tmp_path}/tiny"
[adapter]
kind = "full"
[checkpoint]
every = 3
[[dataset]]
url = "{tmp_path}/photos"
resolution = 64
align = 8
"""
    )
    command = [sys.executable, "-m", "st.cli", "train", str(file)]
    subprocess.run([*command, "--set", "steps=3"], check=True, stderr=subprocess.DEVNULL)
    largest = max(path.stat().st_size for path in (tmp_path / "out" / "checkpoints").rglob("*") if path.is_file())

    # No file may grow to the size of the optimizer's state: writing it fails as on a full disk.
    limit = largest * 3 // 4
    full = subprocess.run(
        [*command, "--resume"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )

    assert full.returncode == 1, full.stderr
    assert "checkpoint of step 6 could not be written" in full.stderr
    assert "the one of step 3 is untouched" in full.stderr
    assert "two checkpoints in a row could not be written" in full.stderr
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == ["step-00000003"]
    subprocess.run([*command, "--resume"], check=True, stderr=subprocess.DEVNULL)
    events = list(read_events(tmp_path / "out" / "events.jsonl"))
    assert events[-1]["outcome"] == "finished"


def test_deterministic_algorithms_are_asked_for_where_a_run_file_does(tiny_run):
    import torch

    tiny_run(plugins=[], text="")
    assert not torch.are_deterministic_algorithms_enabled()
    file = tiny_run.root / "run-1.toml"
    file.write_text("deterministic = true\n" + file.read_text())
    try:
        result = call_cli("train", file, "--output", tiny_run.root / "again")
        assert result.code == 0, result.err
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_weights_that_would_lose_their_updates_are_refused_with_the_plan(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(
        f'plugins = ["{TINY}:TinyFamily"]\noutput = "{tmp_path}/out"\nsteps = 1\n[adapter]\ndtype = "bf16"\n'
        '[[dataset]]\nurl = "photos"\n'
    )

    result = call_cli("train", file, "--dry-run")

    assert result.code == 2
    assert "optimizer.kind = 'adamw' does not train weights that are kept in bf16" in result.err
    assert "adamw_bf16" in result.err
