"""One rank, two ranks and accumulation train the same run."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from waiting import wait_for

from st.testing import TinyRunner
from st.testing.runs import write_photos
from st.testing.subjects.judge import Judge
from st.testing.subjects.tiny import TinyFamily

RECORDER = Path(__file__).with_name("recorder.py")
TINY = Path(sys.modules[TinyFamily.__module__].__file__ or "")
STEPS = 20
RUN_FILE = """
plugins = ["{tiny}:TinyFamily", "{recorder}:Recorder"]
steps = {steps}
precision = "fp32"
device = "cpu"
[model]
checkpoint = "{root}/tiny"
[adapter]
kind = "full"
[optimizer]
kind = "{optimizer}"
lr = {lr}
[cache]
url = "{root}/cache"
[[dataset]]
url = "{root}/photos"
resolution = 64
align = 8
repeats = 1
"""


def _train(root: Path, name: str, batch: int, accumulate: int, ranks: int, optimizer: str) -> Path:
    lr = 0.05 if optimizer == "sgd" else 1e-3
    file = root / f"{name}.toml"
    file.write_text(RUN_FILE.format(tiny=TINY, recorder=RECORDER, root=root, steps=STEPS, optimizer=optimizer, lr=lr))
    settings = {"output": root / name, "batch": batch, "accumulate": accumulate, "ranks.processes": ranks}
    command = [sys.executable, "-m", "st.cli", "train", str(file)]
    subprocess.run([*command, *(f"--set={key}={value}" for key, value in settings.items())], check=True)
    return root / name


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("world")
    TinyFamily.tiny(root / "tiny")
    write_photos(root / "photos", count=10)
    return {
        "one": _train(root, "one", 4, 1, 1, "sgd"),
        "two": _train(root, "two", 2, 1, 2, "sgd"),
        "accumulated": _train(root, "accumulated", 2, 2, 1, "sgd"),
    }


def _seen(directory: Path, ranks: int = 1) -> dict[int, tuple[str, float, bytes]]:
    """Draw index -> what was drawn for it."""
    found = {}
    for rank in range(ranks):
        for step in torch.load(directory / f"seen-{rank}.pt")["seen"]:
            for row, index in enumerate(step["indices"]):
                assert index not in found, f"draw {index} was made twice"
                noise = step["noise"][row].numpy().tobytes()
                found[index] = (step["keys"][row], step["t"][row].item(), noise)
    return found


def test_samples_times_and_noise_are_byte_equal(runs):
    one = _seen(runs["one"])

    assert len(one) == 4 * STEPS
    assert _seen(runs["two"], ranks=2) == one
    assert _seen(runs["accumulated"]) == one


def test_gradients_of_the_first_step_agree(runs):
    expected = torch.load(runs["one"] / "seen-0.pt")["gradients"]
    largest = max(gradient.abs().max() for gradient in expected)

    for name in ("two", "accumulated"):
        gradients = torch.load(runs[name] / "seen-0.pt")["gradients"]
        worst = max((a - b).abs().max() for a, b in zip(gradients, expected, strict=True))
        assert worst <= 1e-6 * largest


def test_plain_sgd_reaches_the_same_weights(runs):
    expected = load_file(runs["one"] / "model" / "denoiser.safetensors")

    for name in ("two", "accumulated"):
        weights = load_file(runs[name] / "model" / "denoiser.safetensors")
        assert max((weights[key] - expected[key]).abs().max() for key in expected) <= 1e-5


def test_a_signal_to_the_launcher_lets_all_ranks_save(tmp_path):
    TinyFamily.tiny(tmp_path / "tiny")
    write_photos(tmp_path / "photos", count=10)
    file = tmp_path / "run.toml"
    file.write_text(
        RUN_FILE.format(tiny=TINY, recorder=RECORDER, root=tmp_path, steps=20_000, optimizer="sgd", lr=0.01)
    )
    output = tmp_path / "out"
    command = [sys.executable, "-m", "st.cli", "train", str(file), "--set=ranks.processes=2", f"--output={output}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    wait_for(output / "events.jsonl", '"event": "step"')

    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 4, errors
    assert "Traceback" not in errors
    assert len(list((output / "checkpoints").glob("step-*"))) == 1


def test_two_ranks_score_all_pictures_as_one_does(tiny_run: TinyRunner) -> None:
    text = '[[validator]]\nkind = "judge"\nevery = 2\n[validation]\nevery = 2\nprompts = ["a", "b", "c"]\n'
    text += 'resolutions = ["16"]\nsteps = 2\nguidance = 1.0\n'
    plugins = [f"{sys.modules[Judge.__module__].__file__}:Judge"]

    one = tiny_run(plugins=plugins, text=text, steps=2)
    two = tiny_run(plugins=plugins, text=f"{text}[ranks]\nprocesses = 2\n", steps=2, batch=1)

    scores = [{name: values for name, values in run.metrics().items() if "judge/" in name} for run in (one, two)]
    assert scores[0]["judge/pictures"] == [3, 3]
    assert scores[0].keys() == scores[1].keys()
    assert all(values == pytest.approx(scores[1][name], rel=1e-4) for name, values in scores[0].items())
