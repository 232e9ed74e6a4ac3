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


BRIGHTNESS = f"{HERE / 'brightness.py'}:Brightness"
PICTURES = '[validation]\nevery = 2\nprompts = ["a", "b"]\nresolutions = ["16"]\nsteps = 2\nguidance = 1.0\n'


def test_a_validator_of_a_plugin_is_asked_before_the_first_step_and_when_it_is_due(tiny_run):
    text = '[[validator]]\nkind = "brightness"\nevery = 2\nfactor = 10.0'

    run = tiny_run(plugins=[BRIGHTNESS], text=text, steps=5)

    assert run.metrics()["brightness/step"] == [0.0, 20.0, 40.0, 50.0]


def test_metrics_carry_the_name_that_a_validator_was_given(tiny_run):
    tables = [f'[[validator]]\nkind = "brightness"\nname = "{name}"\nevery = 2' for name in ("one", "two")]

    run = tiny_run(plugins=[BRIGHTNESS], text="\n".join(tables), steps=2)

    assert {"one/step", "two/step"} <= run.metrics().keys()


def test_two_validators_of_one_name_are_refused(tiny_run):
    text = '[[validator]]\nkind = "brightness"\nevery = 2\n' * 2

    with pytest.raises(AssertionError, match="another validator is called 'brightness'"):
        tiny_run(plugins=[BRIGHTNESS], text=text)


def test_a_validator_that_scores_pictures_is_given_them_whenever_it_is_due(tiny_run):
    text = f'{PICTURES}[[validator]]\nkind = "seen"\nevery = 3'

    run = tiny_run(plugins=[BRIGHTNESS], text=text, steps=4)

    shown = {path.parent.name for path in (run.directory / "samples").glob("*/a-*.png")}
    assert run.metrics()["seen/pictures"] == [2.0, 2.0, 2.0]
    assert shown == {"base", *(f"step-{step:08d}" for step in (2, 3, 4))}


def test_one_that_scores_none_is_given_what_is_rendered_anyway(tiny_run):
    text = f'{PICTURES}[[validator]]\nkind = "brightness"\nevery = 1'

    run = tiny_run(plugins=[BRIGHTNESS], text=text, steps=3)

    assert run.metrics()["brightness/pictures"] == [2.0, 0.0, 2.0, 2.0]


def test_scores_wait_for_the_first_step_where_pictures_do(tiny_run):
    text = f'{PICTURES}at_start = false\n[[validator]]\nkind = "seen"\nevery = 2'

    run = tiny_run(plugins=[BRIGHTNESS], text=text, steps=2)

    assert run.metrics()["seen/pictures"] == [2.0]


def test_scoring_pictures_that_nobody_renders_is_refused(tiny_run):
    with pytest.raises(AssertionError, match="'seen' scores pictures, and none are rendered"):
        tiny_run(plugins=[BRIGHTNESS], text='[[validator]]\nkind = "seen"\nevery = 2')


def test_validators_leave_training_as_it_is(tiny_run):
    text = f'{PICTURES}[[validator]]\nkind = "restless"\nevery = 1'

    watched = tiny_run(plugins=[BRIGHTNESS], text=text, steps=3)

    assert watched.weights() == tiny_run(steps=3).weights()


def test_the_best_picture_score_decides_which_checkpoint_is_best(tiny_run):
    text = (
        f'{PICTURES}[[validator]]\nkind = "seen"\nevery = 2\n[evaluation]\nevery = 1\n'
        '[checkpoint]\nevery = 1\nkeep = 1\nbest = "seen/mean"\nbest_is = "highest"'
    )

    run = tiny_run(plugins=[BRIGHTNESS], text=text, steps=5)

    scores = dict(zip((0, 2, 4, 5), run.metrics()["seen/mean"], strict=True))
    best = json.loads((run.directory / "checkpoints" / "best.json").read_text())
    assert best["step"] == max((2, 4, 5), key=lambda step: scores[step])


def test_an_unknown_validator_is_refused_with_a_suggestion(tiny_run):
    text = '[[validator]]\nkind = "brightnes"\nevery = 2'

    with pytest.raises(AssertionError, match="Did you mean 'brightness'"):
        tiny_run(plugins=[BRIGHTNESS], text=text)


def test_the_best_checkpoint_is_kept_besides_the_newest(tiny_run):
    text = (
        '[[validator]]\nkind = "brightness"\nevery = 1\nfactor = -1.0\n'
        '[checkpoint]\nevery = 2\nkeep = 1\nbest = "brightness/step"\nbest_is = "highest"'
    )

    run = tiny_run(plugins=[BRIGHTNESS], text=text, steps=6)

    kept = sorted(path.name for path in (run.directory / "checkpoints").glob("step-*"))
    assert kept == ["step-00000001", "step-00000006"]
    assert json.loads((run.directory / "checkpoints" / "best.json").read_text())["step"] == 1


def test_a_metric_that_nobody_measures_stops_the_run_by_name(tiny_run):
    text = '[[validator]]\nkind = "brightness"\nevery = 1\n[checkpoint]\nbest = "sharpness"'

    with pytest.raises(
        AssertionError, match=r"checkpoint\.best = 'sharpness' is not measured\n\s+measured: brightness/pictures"
    ):
        tiny_run(plugins=[BRIGHTNESS], text=text)


def test_a_validator_that_fails_leaves_the_best_checkpoint_open(tiny_run):
    text = '[[validator]]\nkind = "failing"\nevery = 1\n[checkpoint]\nevery = 1\nbest = "failing/step"'

    run = tiny_run(plugins=[BRIGHTNESS], text=text, steps=4)

    told = [event["text"] for event in run.events() if event.get("kind") == "warning"]
    unmeasured = [text.partition(":")[0] for text in told if "checkpoint.best" in text]
    assert unmeasured == [f"checkpoint.best = 'failing/step' could not be measured at step {step}" for step in (1, 2)]
    assert json.loads((run.directory / "checkpoints" / "best.json").read_text())["step"] == 3


def test_a_metric_that_nobody_measures_is_refused_once_what_failed_has_given_others(tiny_run):
    text = '[[validator]]\nkind = "failing"\nevery = 1\n[checkpoint]\nbest = "failing/sharpness"'

    with pytest.raises(AssertionError, match=r"'failing/sharpness' is not measured\n\s+measured: failing/step"):
        tiny_run(plugins=[BRIGHTNESS], text=text, steps=4)


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
