"""A resumed run notices other samples, encoders and weights under the same names, and uses every accepted setting."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from st.testing.runs import TinyRun, TinyRunner, call_cli
from st.train.saving.state import read_state


def repaint(photos: Path) -> None:
    file = photos / "1.png"
    pixels = np.random.default_rng(5).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    with Image.open(file) as before:
        size = before.size
    Image.fromarray(pixels).resize(size).save(file)


def recaption(photos: Path) -> None:
    (photos / "1.txt").write_text("something else")


def notes(run: TinyRun) -> list[str]:
    return [event["text"] for event in run.events() if event["event"] == "note"]


def resumed(runner: TinyRunner, run: TinyRun, *accept: str, steps: int = 4):
    file = sorted(runner.root.glob("run-*.toml"))[-1]
    asked = [argument for key in accept for argument in ("--accept", key)]
    return call_cli("train", file, "--output", run.directory, "--resume", "--set", f"steps={steps}", *asked)


@pytest.mark.parametrize("change", [repaint, recaption])
def test_other_samples_under_the_same_names_are_refused_until_they_are_accepted(tiny_run, change):
    first = tiny_run(steps=2)
    digest = json.loads((first.directory / "manifest.json").read_text())["data"]["photos"]["digest"]
    change(tiny_run.root / "photos")

    refused = resumed(tiny_run, first)

    assert refused.code == 2
    assert "data set 'photos' holds other files or captions" in refused.err
    assert "--accept data.photos" in refused.err
    assert json.loads((first.directory / "manifest.json").read_text())["data"]["photos"]["digest"] == digest
    accepted = resumed(tiny_run, first, "data.photos")
    assert accepted.code == 0, accepted.err
    assert any("accepted at this resume" in note for note in notes(first))
    assert resumed(tiny_run, first, steps=5).code == 0


def test_files_that_were_only_touched_are_the_same(tiny_run):
    first = tiny_run(steps=2)
    for file in (tiny_run.root / "photos").iterdir():
        file.touch()

    assert resumed(tiny_run, first).code == 0


def test_one_changed_bit_of_the_base_weights_is_refused_until_it_is_accepted(tiny_run):
    first = tiny_run(steps=2)
    file = tiny_run.root / "tiny" / "denoiser.safetensors"
    state = load_file(file)
    last = sorted(state)[-1]
    state[last].view(-1)[-1] = torch.nextafter(state[last].view(-1)[-1], torch.tensor(9.0))
    save_file(state, file)

    refused = resumed(tiny_run, first)

    assert refused.code == 2
    assert "the denoiser's own weights are others" in refused.err
    assert resumed(tiny_run, first, "weights").code == 0


def test_base_weights_that_are_not_finite_are_named(tiny_run):
    tiny_run(steps=1)
    file = tiny_run.root / "tiny" / "denoiser.safetensors"
    state = load_file(file)
    first = sorted(state)[0]
    state[first].view(-1)[0] = float("nan")
    save_file(state, file)

    with pytest.raises(AssertionError) as error:
        tiny_run(steps=1)

    assert f"are not finite, such as '{first}'" in str(error.value)


@pytest.mark.parametrize(
    ("text", "key", "value", "name", "expected"),
    [
        ('kind = "adamw"\nepsilon = 1e-8', "epsilon", "1e-3", "eps", 1e-3),
        ('kind = "adamw"\nlr = 1e-3', "lr", "1e-2", "lr", 1e-2),
        ('kind = "adamw"\nbeta2 = 0.9', "beta2", "0.5", "betas", (0.9, 0.5)),
        ('kind = "adamw_bf16"\nepsilon = 1e-8', "epsilon", "1e-3", "epsilon", 1e-3),
        ('kind = "adafactor"\nclip = 1.0', "clip", "2.0", "d", 2.0),
    ],
)
def test_an_accepted_setting_of_the_optimizer_is_used_whatever_its_name_there(
    tiny_run, text, key, value, name, expected
):
    first = tiny_run(steps=1, text=f"[optimizer]\n{text}\n")
    file = sorted(tiny_run.root.glob("run-*.toml"))[-1]
    more = ("--set", f"optimizer.{key}={value}", "--accept", f"optimizer.{key}", "--set", "steps=2")

    result = call_cli("train", file, "--output", first.directory, "--resume", *more)

    assert result.code == 0, result.err
    state = read_state(first.directory / "checkpoints" / "step-00000002" / "state", "optimizer")
    assert state["param_groups"][0][name] == expected
