"""Whole runs on the tiny checkpoint, through the command line, and what they leave for other programs."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from st.testing.runs import TinyRun
from st.train.reopening import open_run

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
RUN = """
plugins = ["ace_step"]
output = "{output}"
steps = {steps}
batch = 2
precision = "fp32"
device = "cpu"
[model]
flavour = "{flavour}"
checkpoint = "{checkpoint}"
text_precision = "fp32"
[adapter]
rank = 4
{adapter}
[optimizer]
lr = 0.01
[report]
every = 1
[[dataset]]
url = "{songs}"
media = "audio"
facts = ["lyrics", "bpm"]
duration_interval = 1.0
caption_dropout = 0.2
{more}
"""
PREVIEWS = """
[validation]
every = 2
seconds = 1.5
steps = 2
guidance = 3.0
prompts = [
    "calm piano",
    { prompt = "a choir", seconds = 1.0, facts = { lyrics = "[verse]\\nla la", bpm = 120 } },
]
"""


def write_songs(folder: Path) -> Path:
    """Four songs of two lengths, mono and stereo, at two sample rates, with tags and some of the facts."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(4):
        rate, seconds, channels = (1600, 1.3, 1) if number % 2 else (4000, 2.2, 2)
        tone = np.sin(np.arange(round(rate * seconds))[:, None] * (number + 2) / 40) * np.full((1, channels), 0.4)
        soundfile.write(folder / f"{number}.wav", tone, rate)
        (folder / f"{number}.txt").write_text(f"song number {number}", encoding="utf-8")
    (folder / "0.lyrics.txt").write_text("[verse]\nla la la", encoding="utf-8")
    (folder / "1.bpm.txt").write_text("97", encoding="utf-8")
    return folder


@pytest.fixture
def train(run_file: Any, st_cli: Any, folder: Path, tmp_path: Path) -> Callable[..., TinyRun]:
    """Trains on four songs."""

    def run(name: str = "out", steps: int = 2, *, resume: bool = False, **given: Any) -> TinyRun:
        output, songs = tmp_path / name, write_songs(tmp_path / "songs")
        places = {"output": output, "songs": songs, "steps": steps}
        settings = {"flavour": "base", "checkpoint": folder, "adapter": "", "more": ""} | given
        result = st_cli("train", run_file(RUN.format(**places, **settings)), *(["--resume"] if resume else []))
        assert result.code == 0, result.err + result.out
        return TinyRun(output, result)

    return run


def test_previews_are_sounds_of_the_promised_length_that_the_page_plays(train: Callable[..., TinyRun]) -> None:
    done = train(more=PREVIEWS)

    files = sorted((done.directory / "samples").rglob("*.wav"))
    assert [f"{one.parent.name}/{one.name}" for one in files] == [
        f"{folder}/{name}.wav" for folder in ("base", "step-00000002") for name in ("a-choir-1s", "calm-piano-1.5s")
    ]
    for file in files:
        sound = soundfile.info(file)
        assert (sound.samplerate, sound.channels) == (1600, 2)
        assert sound.frames == (1600 if "1s" in file.name else 2400)
        assert float(np.abs(soundfile.read(file)[0]).max()) == pytest.approx(10 ** (-1 / 20), abs=1e-3)
    page = (done.directory / "report.html").read_text(encoding="utf-8")
    assert page.count('<audio controls preload="none" src="samples/') == 4
    assert page.count("data:image/svg+xml;base64,") == 4
    assert done.outcome == "finished"
    assert done.warnings() == []


def test_songs_of_one_length_are_trained_together_with_what_is_told_of_them(train: Callable[..., TinyRun]) -> None:
    from st.settings.assembly import assemble_saved
    from st.testing.runs import call_cli

    done = train()

    notes = [event for event in done.events() if event.get("kind") == "dataset"]
    assert [event["buckets"] for event in notes] == [{"2s": 2, "1s": 2}]
    assert all(value > 0 for value in done.metrics()["loss"])
    assert assemble_saved(done.directory / "run.json")[0].density.kind == "logit_normal"
    assert call_cli("data", "check", done.directory.parent / "run.toml").code == 0


def test_a_run_that_goes_on_ends_as_one_that_was_never_stopped(train: Callable[..., TinyRun]) -> None:
    whole = train("whole", steps=4)
    train("parts", steps=2)

    parts = train("parts", steps=4, resume=True)

    assert parts.weights() == whole.weights()


def test_a_song_is_rendered_from_a_saved_run(train: Callable[..., TinyRun], st_cli: Any) -> None:
    done = train(steps=1)
    command = ("sample", done.directory, "--prompt", "a choir", "--steps", "2", "--seconds", "1", "--guidance", "2")

    plain = st_cli(*command)
    told = st_cli(*command, "--fact", "bpm=90", "--fact", "lyrics=la = la", "--out", done.directory / "told.wav")
    unknown = st_cli(*command, "--fact", "tempo=90")

    assert (plain.code, told.code) == (0, 0), plain.err + told.err
    file = Path(plain.out.strip())
    assert file.name == "a-choir-1s-step-1-seed-42.wav"
    assert told.out.strip() == str(done.directory / "told.wav")
    assert soundfile.info(file).frames == soundfile.info(done.directory / "told.wav").frames == 1600
    assert file.read_bytes() != (done.directory / "told.wav").read_bytes()
    assert "this model is told no 'tempo'" in unknown.err


@pytest.mark.parametrize("name", ["diffusers", "comfyui"])
def test_the_adapter_of_a_run_is_loaded_by_the_pipeline(
    train: Callable[..., TinyRun], folder: Path, load: Any, sample: Any, name: str
) -> None:
    done = train(adapter=f'format = "{name}"')
    run, _ = open_run(done.directory)
    batch, noised = sample(run.family)
    pipeline = load(folder)

    with torch.no_grad():
        before = run.family.predict(pipeline.transformer, noised, batch)
        pipeline.load_lora_weights(str(done.directory / "adapter.safetensors"))
        loaded = run.family.predict(pipeline.transformer, noised, batch)
        expected = run.family.predict(run.denoiser, noised, batch)

    torch.testing.assert_close(loaded, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(loaded, before, atol=1e-4)


def test_files_for_comfyui_have_the_makers_names(train: Callable[..., TinyRun]) -> None:
    done = train(adapter='format = "comfyui"\nalpha = 8')

    names = set(load_file(done.directory / "adapter.safetensors"))

    layers = {
        f"{kind}.{end}" for kind in ("self_attn", "cross_attn") for end in ("q_proj", "k_proj", "v_proj", "o_proj")
    }
    parts = ("lora_A.weight", "lora_B.weight", "alpha")
    assert names == {
        f"base_model.model.layers.{block}.{layer}.{part}" for block in range(4) for layer in layers for part in parts
    }


def test_a_fact_that_the_model_is_not_told_is_named(run_file: Any, st_cli: Any, folder: Path, tmp_path: Path) -> None:
    more = '[validation]\nevery = 1\nprompts = [{ prompt = "a", facts = { tempo = 90 } }]'
    places = {"output": tmp_path / "out", "songs": write_songs(tmp_path / "songs"), "steps": 1}
    text = RUN.format(**places, flavour="base", checkpoint=folder, adapter="", more=more)

    result = st_cli("train", run_file(text))

    assert result.code != 0
    assert "this model is told no 'tempo'" in result.err


RUN_FILES = sorted(Path(__file__).parents[4].glob("docs/run-files/ace-step-*.toml"))


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ('resolutions = ["512"]', "validation.resolutions has no effect"),
        ("frames = 5", "validation.frames has no effect"),
        ('negative = "noise"', "guided away from being told nothing at all"),
    ],
)
def test_what_says_nothing_about_sounds_is_refused_before_anything_is_loaded(
    run_file: Any, st_cli: Any, folder: Path, tmp_path: Path, setting: str, why: str
) -> None:
    more = f'[validation]\nevery = 1\nprompts = ["a"]\n{setting}'
    places = {"output": tmp_path / "out", "songs": tmp_path, "steps": 1}

    result = st_cli(
        "train", run_file(RUN.format(**places, flavour="base", checkpoint=folder, adapter="", more=more)), "--dry-run"
    )

    assert result.code == 2
    assert why in result.err


@pytest.mark.parametrize("file", RUN_FILES, ids=lambda file: file.stem)
def test_run_files_train_and_render(
    run_file: Any, st_cli: Any, folder: Path, distilled_folder: Path, tmp_path: Path, file: Path
) -> None:
    text = file.read_text(encoding="utf-8")
    checkpoint = distilled_folder if "turbo" in file.stem else folder
    text = re.sub(r"^(output|checkpoint) = .*$", "", text, flags=re.M)
    text = re.sub(
        r"^every = \d{3,}$", "every = 2", re.sub(r"^steps = \d{4,}$", "steps = 2", text, flags=re.M), flags=re.M
    )
    text = re.sub(r"^steps = \d\d$", "steps = 3", text, flags=re.M)
    text = text.replace("[model]", f'[model]\ncheckpoint = "{checkpoint}"').replace("accumulate = ", "# ")
    text = f'output = "{tmp_path / "out"}"\ndevice = "cpu"\n' + text.replace(
        '"songs"', f'"{write_songs(tmp_path / "songs")}"'
    )
    wanted = tomllib.loads(text)["validation"]

    result = st_cli("train", run_file(text))

    done = TinyRun(tmp_path / "out", result)
    assert result.code == 0, result.err
    assert done.warnings() == []
    for place, prompt in enumerate(wanted["prompts"]):
        seconds = wanted["seconds"] if isinstance(prompt, str) else prompt.get("seconds", wanted["seconds"])
        (file,) = (done.directory / "samples" / "step-00000002").glob(f"*-{seconds}s.wav")
        assert soundfile.info(file).frames == 1600 * seconds, place
