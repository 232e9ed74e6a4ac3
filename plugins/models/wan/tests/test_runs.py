"""Whole runs on tiny checkpoints, through the command line: the run files of the documentation, and what they leave."""

from __future__ import annotations

import json
import os
import re
import signal
import tomllib
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from time import sleep
from typing import Any

import av
import pytest
from PIL import Image

from st.testing.media import write_clip
from st.testing.runs import TinyRun
from st_wan import WanOptions

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")
RUN_FILES = sorted(Path(__file__).parents[4].glob("docs/run-files/wan-*.toml"))
SMALL = {
    "steps = 2000": "steps = 2",
    "every = 500": "every = 2",
    "steps = 30": "steps = 2",
    "accumulate = 2": "",
    "rank = 32": "rank = 2",
}


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four clips of a second and a half with captions, and a picture."""
    where = tmp_path_factory.mktemp("clips")
    for number in range(4):
        write_clip(where / f"{number}.mp4", [(number + place) % 30 for place in range(36)], rate=24, size=(64, 96))
        (where / f"{number}.txt").write_text(f"clip number {number}", encoding="utf-8")
    Image.new("RGB", (80, 60), "teal").save(where / "first.png")
    return where


@pytest.fixture
def train(run_file: Any, st_cli: Any, folder: Any, clips: Path, tmp_path: Path) -> Callable[..., TinyRun]:
    """Trains what a run file says on a tiny checkpoint, with small clips."""

    def run(text: str, *arguments: str, where: Path = tmp_path / "out") -> TinyRun:
        flavour = tomllib.loads(text)["model"]["flavour"]
        for large, small in SMALL.items():
            text = text.replace(large, small)
        text = re.sub(r"^output = .*$", f'output = "{where}"\ndevice = "cpu"', text, flags=re.M)
        text = re.sub(r"^resolution = \d+$", "resolution = 48", text, flags=re.M)
        text = re.sub(r"^(num_frames|frames) = \d+$", r"\1 = 5", text, flags=re.M)
        text = re.sub(r'"\d+x\d+"', '"64x32"', text)
        for name, there in (("clips", clips), ("first.png", clips / "first.png"), ("depth.png", clips / "first.png")):
            text = text.replace(f'"{name}"', f'"{there}"')
        text = text.replace('url = "depth"', f'url = "{clips}"')
        text = text.replace("[model]", f'[model]\ncheckpoint = "{folder(flavour)}"\ntext_precision = "fp32"')
        result = st_cli("train", run_file(text), *arguments)
        assert result.code == 0, result.err + result.out
        return TinyRun(where, result)

    return run


def test_every_flavour_has_a_run_file() -> None:
    flavours = [tomllib.loads(file.read_text(encoding="utf-8"))["model"]["flavour"] for file in RUN_FILES]

    assert sorted(flavours) == sorted(WanOptions.model_fields["flavour"].annotation.__args__)  # type: ignore[union-attr]


@pytest.mark.parametrize("file", RUN_FILES, ids=lambda file: file.stem)
def test_run_files_train_and_show_a_clip_of_the_promised_length(train: Callable[..., TinyRun], file: Path) -> None:
    wanted = tomllib.loads(file.read_text(encoding="utf-8"))

    done = train(file.read_text(encoding="utf-8"))

    # The clips are smaller than any model's, and its shapes are coarse beside them.
    assert [text for text in done.warnings() if "of their area at the edges" not in text] == []
    assert done.outcome == "finished"
    films = sorted((done.directory / "samples" / "step-00000002").glob("*.mp4"))
    assert len(films) == len(wanted["validation"]["prompts"])
    for film in films:
        with av.open(str(film)) as container:
            frames = list(container.decode(video=0))
            assert (len(frames), frames[0].width, frames[0].height) == (5, 64, 32)
            assert container.streams.video[0].average_rate == wanted["dataset"][0]["fps"]
    page = (done.directory / "report.html").read_text(encoding="utf-8")
    assert page.count("<video autoplay loop muted") == 2 * len(films)
    for film in films:
        assert f'src="samples/step-00000002/{film.name}"' in page
    assert all(value == value for value in done.metrics()["loss"])
    assert (done.directory / "adapter.safetensors").exists()
    both = wanted["model"]["flavour"] == "t2v-a14b"
    assert (done.directory / "adapter-low-noise.safetensors").exists() is both
    assert (done.directory / "adapter-musubi.safetensors").exists() is (wanted["model"]["flavour"] == "t2v-14b")


def test_prompts_without_the_picture_that_they_need_are_one_error_before_anything_is_loaded(
    run_file: Any, st_cli: Any, folder: Any, clips: Path
) -> None:
    text = (
        f'plugins = ["wan"]\noutput = "out"\nsteps = 1\n[model]\nflavour = "i2v-480p"\n'
        f'[[dataset]]\nurl = "{clips}"\nmedia = "video"\nreferences = "x"\n'
        '[validation]\nevery = 1\nprompts = ["a cat", "a dog", {prompt = "a bird", references = ["b.png"]}]\n'
    )

    result = st_cli("train", run_file(text), "--dry-run")

    assert result.code == 2
    assert "2 prompts have no picture, such as 'a-cat'." in result.err
    assert "this model is given the clip's own first frame" in result.err


def test_prompts_that_cannot_be_read_are_said_once(run_file: Any, st_cli: Any, clips: Path) -> None:
    text = (
        f'plugins = ["wan"]\noutput = "out"\nsteps = 1\n[model]\nflavour = "i2v-480p"\n'
        f'[[dataset]]\nurl = "{clips}"\nmedia = "video"\n[validation]\nevery = 1\nprompts = ["a cat --q 3"]\n'
    )

    result = st_cli("train", run_file(text), "--dry-run")

    assert (result.code, result.err.count("Error:")) == (2, 1)
    assert "unknown flag '--q'" in result.err


TRACKER = """
import json
import st

class Shown(st.Tracker):
    "Writes what it is shown."

    def start(self, run): self.file = run.directory / "shown.json"
    def log(self, step, metrics): pass
    def show(self, step, pictures):
        told = [(one.path.name, one.label, one.frames, one.frames_per_second) for one in pictures]
        self.file.write_text(json.dumps(told))
"""


def test_trackers_are_told_how_long_a_clip_is_and_how_fast(train: Callable[..., TinyRun], tmp_path: Path) -> None:
    (tmp_path / "shown.py").write_text(TRACKER, encoding="utf-8")
    text = next(file for file in RUN_FILES if file.stem == "wan-ti2v-5b").read_text(encoding="utf-8")
    text = text.replace('plugins = ["wan"]', f'plugins = ["wan", "{tmp_path / "shown.py"}:Shown"]')
    text = text.split("[validation]")[0] + "[validation]\nevery = 2\nsteps = 2\n"
    text += 'prompts = ["waves"]\nresolutions = ["64x32"]\nframes = 7\n'

    done = train(text)

    assert json.loads((done.directory / "shown.json").read_text()) == [["waves-64x32x5.mp4", "waves 64x32x5", 5, 24.0]]


def test_vace_learns_from_what_control_clips_show(train: Callable[..., TinyRun], tmp_path: Path) -> None:
    text = next(file for file in RUN_FILES if file.stem == "wan-vace-1.3b").read_text(encoding="utf-8")
    text = re.sub(r"\[validation\].*", "[report]\nevery = 1\n", text, flags=re.S)
    black = tmp_path / "black"
    for number in range(4):
        write_clip(black / f"{number}.mp4", [0] * 36, rate=24, size=(64, 96))

    one = train(text, where=tmp_path / "one")
    other = train(text.replace('url = "depth"', f'url = "{black}"'), where=tmp_path / "other")

    assert one.metrics()["loss"] != other.metrics()["loss"]


def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(train: Callable[..., TinyRun], tmp_path: Path) -> None:
    text = next(file for file in RUN_FILES if file.stem == "wan-ti2v-5b").read_text(encoding="utf-8")
    text = re.sub(r"\[validation\].*", "", text, flags=re.S).replace("steps = 2000", "steps = 12")
    text += "\n[checkpoint]\nevery = 2\n[report]\nevery = 1\n"
    killed = tmp_path / "killed"
    # A fork: another interpreter would import for longer than this run takes.
    process = get_context("fork").Process(target=train, args=(text,), kwargs={"where": killed})
    process.start()
    while process.is_alive() and not (killed / "checkpoints" / "step-00000002").exists():
        sleep(0.005)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL and not (killed / "adapter.safetensors").exists()

    resumed = train(text, "--resume", where=killed)

    whole = train(text, where=tmp_path / "whole")
    assert resumed.weights() == whole.weights()
    assert resumed.metrics()["loss"][-3:] == whole.metrics()["loss"][-3:]
