"""A run that was stopped and resumed ends with the weights of one that was not, bit for bit."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file
from waiting import wait_for

from st.report.log.events import read_events
from st.testing.runs import TINY, call_cli, write_photos
from st.testing.subjects.tiny import TinyFamily

RUN_FILE = """
plugins = ["{tiny}:TinyFamily"]
batch = 2
device = "cpu"
{top}
[model]
checkpoint = "{root}/tiny"
[cache]
url = "{root}/cache"
[report]
every = 1
[[dataset]]
url = "{root}/photos"
resolution = 64
align = 8
{text}
"""

VARIANTS = {
    "lora, dropout": ("[adapter]\nkind = 'lora'\nrank = 4\ndropout = 0.3", 1),
    "lora, accumulated": ("", 2),
    "full, average": ("[adapter]\nkind = 'full'\n[average]\ndecay = 0.9", 1),
    "full, bf16 weights": ("[adapter]\nkind = 'full'\ndtype = 'bf16'\n[optimizer]\nkind = 'adamw_bf16'", 1),
    "full, bf16 over float32 weights": ("[adapter]\nkind = 'full'\ndtype = 'fp32'", 1),
    "adafactor": ("[optimizer]\nkind = 'adafactor'", 1),
    "momentum": ("[optimizer]\nkind = 'sgd'\nmomentum = 0.9", 1),
    "cosine": ("[schedule]\nkind = 'cosine'\nwarmup = 2", 1),
    "recompute, no prefetch": ("[recompute]\nevery = 1\n[loader]\nprefetch = 0", 1),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("resume")
    TinyFamily.tiny(root / "tiny")
    write_photos(root / "photos")
    return root


@pytest.fixture
def written(root: Path, tmp_path: Path) -> Callable[..., Path]:
    def write(text: str = "", top: str = "steps = 5\nprecision = 'fp32'") -> Path:
        file = tmp_path / "run.toml"
        file.write_text(RUN_FILE.format(tiny=TINY, root=root, top=top, text=text))
        return file

    return write


def _train(file: Path, output: Path, *more: str) -> Path:
    result = call_cli("train", file, "--output", output, *more)
    assert result.code == 0, result.err
    return output


def _export(directory: Path) -> dict[str, bytes]:
    files = [*directory.glob("adapter.safetensors"), *directory.glob("model/denoiser.safetensors")]
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert tensors
    return {name: tensor.contiguous().view(-1).float().numpy().tobytes() for name, tensor in tensors.items()}


def _notes(directory: Path) -> list[str]:
    return [str(event["text"]) for event in read_events(directory / "events.jsonl") if event["event"] == "note"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_resumed_run_ends_with_the_same_weights(written, tmp_path, variant):
    text, accumulate = VARIANTS[variant]
    precision = "bf16" if "bf16" in variant else "fp32"
    top = f"steps = 5\naccumulate = {accumulate}\nprecision = '{precision}'"
    file = written(f"{text}\n[checkpoint]\nevery = 2", top=top)
    whole, cut = _train(file, tmp_path / "whole"), _train(file, tmp_path / "cut")
    for step in (4, 5):
        shutil.rmtree(cut / "checkpoints" / f"step-{step:08d}")

    _train(file, cut, "--resume")

    assert "resumed at step 2" in _notes(cut)
    assert _export(cut) == _export(whole)


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(written, tmp_path):
    file = written("[checkpoint]\nevery = 2")
    whole, hurt = _train(file, tmp_path / "whole"), _train(file, tmp_path / "hurt")
    for step in (4, 5):
        state = hurt / "checkpoints" / f"step-{step:08d}" / "state" / "optimizer.safetensors"
        state.write_bytes(state.read_bytes()[:-10])

    _train(file, hurt, "--resume")

    assert sum("'state/optimizer.safetensors' has" in note for note in _notes(hurt)) == 2
    assert _export(hurt) == _export(whole)


def test_checkpoints_that_are_all_damaged_end_the_run(written, tmp_path):
    file = written()
    hurt = _train(file, tmp_path / "hurt")
    (hurt / "checkpoints" / "step-00000005" / "manifest.json").write_text("{")

    result = call_cli("train", file, "--output", hurt, "--resume", "--set", "steps=6")

    assert result.code == 1
    assert "no checkpoint in" in result.err and "--output DIR" in result.err


def test_a_used_folder_is_refused_without_resume(written, tmp_path):
    file = written()
    used = _train(file, tmp_path / "used")

    result = call_cli("train", file, "--output", used)

    assert result.code == 1
    assert "holds a run that was saved at step 5" in result.err and "--resume" in result.err


def test_a_changed_setting_is_refused_until_it_is_accepted(written, tmp_path):
    file = written()
    used = _train(file, tmp_path / "used")
    changed = ("--resume", "--set", "steps=6", "--set", "optimizer.lr=0.5")

    refused = call_cli("train", file, "--output", used, *changed)

    assert refused.code == 2
    assert "optimizer.lr is 0.5, but this run was started with 0.0001" in refused.err
    assert "steps" not in refused.err
    _train(file, used, *changed, "--accept", "optimizer.lr")
    assert "optimizer.lr changed from 0.0001 to 0.5 at this resume" in _notes(used)


def test_a_finished_run_that_is_resumed_just_ends(written, tmp_path):
    file = written()
    whole = _train(file, tmp_path / "whole")
    before = _export(whole)

    _train(file, whole, "--resume")

    assert _export(whole) == before


def test_epochs_count_every_sample_once(written, tmp_path):
    file = written(top="epochs = 2")

    output = _train(file, tmp_path / "epochs")

    progress = json.loads((output / "checkpoints" / "step-00000004" / "state" / "progress.json").read_text())
    assert dict(progress["$items"]) == {"step": 4, "samples": 8, "epoch": 2}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_with_4(written, tmp_path, number):
    file = written("[checkpoint]\nevery = 0", top="steps = 600\nprecision = 'fp32'")
    whole, cut = _train(file, tmp_path / "whole"), tmp_path / "cut"
    command = [sys.executable, "-m", "st.cli", "train", str(file), "--output", str(cut)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    wait_for(cut / "events.jsonl", '"event": "step"')

    process.send_signal(number)
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 4, errors
    assert f"{signal.Signals(number).name}: saving after this step" in errors
    assert len(list((cut / "checkpoints").glob("step-*"))) == 1
    _train(file, cut, "--resume")
    assert _export(cut) == _export(whole)
