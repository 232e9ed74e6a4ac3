"""Classes written for accelerate see a run as accelerate would have shown it to them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import st
from st.report.files.picture_files import save_picture
from st.testing import CliResult, TinyRunner, TrackerTests
from st.testing.plugins import heavy_imports_of
from st.testing.runs import write_photos
from st_accelerate import Accelerate

TENSORBOARD = "accelerate.tracking:TensorBoardTracker"
VALIDATION = """
[validation]
every = 2
steps = 2
prompts = [{name = "square", prompt = "a square"}]
resolutions = ["64"]
compare_base = false
"""
RUN = """
plugins = ["pocket", "accelerate"]
output = "out"
steps = 1

[[dataset]]
url = "photos"
resolution = 64
align = 16
"""


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """``own_trackers`` can be imported, as a user's module on PYTHONPATH can."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


class TestConformance(TrackerTests):
    plugin = "accelerate"
    settings = '[accelerate]\ntracker = "own_trackers:Pictures"'

    @pytest.fixture
    def tracker(self) -> Accelerate:
        return tracker_of("own_trackers:Pictures")


class TestConformanceWithTensorBoard(TrackerTests):
    plugin = "accelerate"
    settings = f'[accelerate]\ntracker = "{TENSORBOARD}"'

    @pytest.fixture
    def tracker(self) -> Accelerate:
        return tracker_of(TENSORBOARD)


def tracker_of(path: str, **settings: Any) -> Accelerate:
    return Accelerate(Accelerate.Options(tracker=path, settings=settings))


def section(path: str, more: str = "") -> str:
    return f'[accelerate]\ntracker = "{path}"\n{more}\n'


def lines(directory: Path) -> list[Any]:
    file = directory / "accelerate" / "lines.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert heavy_imports_of("import st_accelerate") == []


def test_a_class_is_made_started_told_and_finished_in_order(tmp_path: Path) -> None:
    tracker = tracker_of("own_trackers:Lines", mood="good")

    config = {"steps": 2, "name": None, "model": {"size": "tiny", "fuse": True}, "plugins": ["pocket"]}
    tracker.start(st.RunInfo("a run", tmp_path, config))
    tracker.log(1, {"loss": 0.5})
    tracker.finish(st.Outcome.FINISHED)

    flat = {"steps": 2, "name": None, "model.size": "tiny", "model.fuse": True, "plugins": '["pocket"]'}
    made = [["made", "a run", "good"], ["start"], ["settings", flat]]
    assert lines(tmp_path) == [*made, ["log", 1, {"loss": 0.5}], ["finish"]]


def test_pictures_are_arrays_and_clips_their_first_frame(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 6)).save(tmp_path / "still.png")
    Image.new("RGB", (4, 2)).save(
        tmp_path / "clip.webp", save_all=True, append_images=[Image.new("RGB", (4, 2), "red")]
    )
    (tmp_path / "sound.wav").write_bytes(b"a sound")
    save_picture(torch.zeros(3, 2, 16, 32), tmp_path / "film", {}, frames_per_second=8)
    tracker = tracker_of("own_trackers:Pictures")

    names = ("still.png", "clip.webp", "sound.wav", "film.mp4")
    tracker.start(st.RunInfo("run", tmp_path, {}))
    tracker.show(5, [st.Picture(tmp_path / name, "", name) for name in names])

    shown = [line for line in lines(tmp_path) if line[0] == "images"]
    assert shown == [
        ["images", 5, "still.png", [[6, 8, 3, "uint8"]], {}],
        ["images", 5, "clip.webp", [[2, 4, 3, "uint8"]], {}],
        ["images", 5, "film.mp4", [[16, 32, 3, "uint8"]], {}],
    ]


@pytest.mark.parametrize("path", ["own_trackers:Lines", "own_trackers:NoDirectory"])
def test_a_class_that_shows_no_images_is_asked_for_none(path: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "still.png")
    tracker = tracker_of(path)

    tracker.start(st.RunInfo("run", tmp_path, {}))
    tracker.show(1, [st.Picture(tmp_path / "still.png", "", "still")])
    tracker.finish(st.Outcome.FINISHED)

    assert (tmp_path / "accelerate").exists() == (path == "own_trackers:Lines")


def test_a_run_is_seen_by_accelerates_own_tensorboard_tracker(tiny_run: TinyRunner) -> None:
    settings = section(TENSORBOARD, 'project = "first"\nsettings = {filename_suffix = ".mine"}')

    run = tiny_run(plugins=["accelerate"], text=settings + VALIDATION, steps=4)

    folder = run.directory / "accelerate" / "first"
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()
    assert run.warnings("tracker") == []
    assert [path.suffix for path in folder.glob("events*")] == [".mine"]
    for name, values in run.metrics().items():
        assert [event.value for event in events.Scalars(name)] == pytest.approx(values, rel=1e-6)
    assert [(image.step, image.width, image.height) for image in events.Images("square 64x64")] == [
        (step, 64, 64) for step in (0, 2, 4)
    ]


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("own_trackers:Raises", "RuntimeError: the service is down"),
        ("own_trackers:NoTracker", "TypeError: 'own_trackers:NoTracker' is no subclass of accelerate.tracking.General"),
        ("own_trackers:Absent", "AttributeError: module 'own_trackers' has no attribute 'Absent'"),
        ("own_trackers.absent:Lines", "ModuleNotFoundError: No module named 'own_trackers.absent'"),
    ],
)
def test_a_class_that_fails_changes_neither_weights_nor_outcome(path: str, why: str, tiny_run: TinyRunner) -> None:
    failed = tiny_run(plugins=["accelerate"], text=section(path))

    assert failed.outcome == "finished"
    [warning] = failed.warnings("tracker 'accelerate' is off from here: ")
    assert why in warning
    assert failed.weights() == tiny_run().weights()


@pytest.mark.parametrize("path", ["own_trackers:Pictures", TENSORBOARD])
def test_a_class_that_works_does_not_change_the_weights(path: str, tiny_run: TinyRunner) -> None:
    assert tiny_run(plugins=["accelerate"], text=section(path)).weights() == tiny_run().weights()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "[accelerate] tracker: must be set."),
        (section("own_trackers.Lines"), "[accelerate] tracker = 'own_trackers.Lines'"),
        (section("nowhere.trackers:Mine"), "tracker = 'nowhere.trackers:Mine': there is no package 'nowhere'."),
    ],
    ids=["no class", "no colon", "no package"],
)
def test_a_class_that_cannot_be_is_refused_before_the_run(
    text: str, said: str, run_file: Callable[[str], Path], st_cli: Callable[..., CliResult], tmp_path: Path
) -> None:
    write_photos(tmp_path / "photos")

    refused = st_cli("train", run_file(RUN + text), "--dry-run")

    assert refused.code == 2
    assert said in refused.err
