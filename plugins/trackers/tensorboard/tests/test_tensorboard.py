"""What a run leaves behind is what TensorBoard reads back."""

from __future__ import annotations

import json
import wave
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.data_compat import migrate_value
from tensorboard.plugins.image.metadata import PLUGIN_NAME as IMAGES

import st
from st.testing import TinyRunner, TrackerTests
from st.testing.plugins import heavy_imports_of
from st_tensorboard import TensorBoard
from st_tensorboard.summaries import summary_of

EVERYTHING = {"scalars": 0, "images": 0, "audio": 0, "tensors": 0}


class TestConformance(TrackerTests):
    plugin = "tensorboard"

    @pytest.fixture
    def tracker(self) -> TensorBoard:
        return TensorBoard(TensorBoard.Options())


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance=EVERYTHING).Reload()


def scalars(events: EventAccumulator, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events.Scalars(name)]


def started(directory: Path, **config: object) -> TensorBoard:
    tracker = TensorBoard(TensorBoard.Options())
    tracker.start(st.RunInfo(name="run", directory=directory, config=config))
    return tracker


def clip(path: Path) -> Path:
    first, *others = [Image.new("RGB", (8, 6), colour) for colour in ("teal", "red", "white")]
    first.save(path, save_all=True, append_images=others, duration=60, loop=0, lossless=True)
    return path


def sound(path: Path) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((2, 2, 16000, 0, "NONE", ""))
        file.writeframes(bytes(range(40)))
    return path


def test_importing_the_package_imports_neither_torch_nor_tensorboard() -> None:
    code = "import sys, st_tensorboard; assert 'tensorboard' not in sys.modules and 'PIL' not in sys.modules"

    assert heavy_imports_of(code) == []


def test_a_run_is_in_its_folder_with_its_metrics_settings_and_pictures(tiny_run: TinyRunner) -> None:
    validation = (
        '[validation]\nevery = 2\nsteps = 2\nprompts = [{name = "square", prompt = "a square"}]\nresolutions = ["64"]\n'
    )

    run = tiny_run(plugins=["tensorboard"], text=validation, steps=4)

    events = read(run.directory / "tensorboard")
    logged = run.metrics()
    assert {"loss", "lr", "grad_norm", "seconds/step"} <= set(logged) == set(events.Tags()["scalars"])
    for name, values in logged.items():
        assert [value for _, value in scalars(events, name)] == pytest.approx(values, rel=1e-6)
    assert [step for step, _ in scalars(events, "loss")] == [1, 2, 3, 4]
    assert [image.step for image in events.Images("square 64x64")] == [2, 4]
    assert [image.step for image in events.Images("square 64x64 base")] == [0]
    written = (run.directory / "samples" / "step-00000004" / "square-64x64.png").read_bytes()
    assert events.Images("square 64x64")[-1].encoded_image_string == written
    assert json.loads(events.Tensors("settings/text_summary")[0].tensor_proto.string_val[0])["steps"] == 4


def test_the_weights_are_those_of_a_run_without_it(tiny_run: TinyRunner) -> None:
    assert tiny_run(plugins=["tensorboard"]).weights() == tiny_run().weights()


def test_a_folder_that_cannot_be_made_changes_neither_weights_nor_outcome(tiny_run: TinyRunner, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")

    failed = tiny_run(plugins=["tensorboard"], text=f'[tensorboard]\nfolder = "{tmp_path}/taken"\n')

    assert failed.outcome == "finished"
    assert len(failed.warnings("tracker 'tensorboard' is off from here: ")) == 1
    assert failed.weights() == tiny_run().weights()


def test_what_was_logged_is_on_disk_before_the_run_ends(tmp_path: Path) -> None:
    tracker = started(tmp_path)

    tracker.log(1, {"loss": 0.5})

    assert scalars(read(tmp_path / "tensorboard"), "loss") == [(1, 0.5)]
    tracker.finish(st.Outcome.FINISHED)


def test_steps_that_are_done_again_replace_those_before(tmp_path: Path) -> None:
    first = started(tmp_path)
    for step in (1, 2, 3, 4):
        first.log(step, {"loss": float(step)})
    first.finish(st.Outcome.INTERRUPTED)

    resumed = started(tmp_path)
    for step in (3, 4, 5):
        resumed.log(step, {"loss": 10.0 * step})
    resumed.finish(st.Outcome.FINISHED)

    events = read(tmp_path / "tensorboard")
    assert scalars(events, "loss") == [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0), (5, 50.0)]
    assert events.Tags()["tensors"] == ["settings/text_summary"]


def test_a_clip_is_shown_as_one_that_moves(tmp_path: Path) -> None:
    value = summary_of(st.Picture(clip(tmp_path / "clip.webp"), "a clip", "clip 8x6")).value[0]

    with Image.open(BytesIO(value.image.encoded_image_string)) as shown:
        assert (shown.format, shown.n_frames, shown.size, shown.info["duration"]) == ("GIF", 3, (8, 6), 60)
        shown.seek(1)
        assert shown.convert("RGB").getpixel((4, 3)) == pytest.approx((255, 0, 0), abs=8)


def test_a_film_moves_at_its_own_speed(tmp_path: Path) -> None:
    from st.report.files.picture_files import save_picture

    white = torch.stack([torch.full((3, 6, 8), shade) for shade in (0.0, 1.0, 0.0)], dim=1)
    path = save_picture(white, tmp_path / "film", {}, frames_per_second=10)

    value = summary_of(st.Picture(path, "a film", "film 8x6", 3, 10.0)).value[0]

    with Image.open(BytesIO(value.image.encoded_image_string)) as shown:
        assert (shown.format, shown.n_frames, shown.size, shown.info["duration"]) == ("GIF", 3, (8, 6), 100)
        shown.seek(1)
        assert min(shown.convert("RGB").getpixel((4, 3))) > 240


def test_a_still_in_another_format_becomes_a_png(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6), "teal").save(tmp_path / "still.webp", lossless=True)

    image = summary_of(st.Picture(tmp_path / "still.webp", "a still", "still")).value[0].image

    with Image.open(BytesIO(image.encoded_image_string)) as shown:
        assert (shown.format, shown.getpixel((0, 0)), image.width, image.height) == ("PNG", (0, 128, 128), 8, 6)


def test_a_sound_is_heard_as_it_was_written(tmp_path: Path) -> None:
    file = sound(tmp_path / "sound.wav")
    tracker = started(tmp_path)

    tracker.show(7, [st.Picture(file, "a chord", "chord")])
    tracker.finish(st.Outcome.FINISHED)

    [heard] = read(tmp_path / "tensorboard").Audio("chord")
    assert (heard.step, heard.sample_rate, heard.length_frames) == (7, 16000, 10)
    assert (heard.content_type, heard.encoded_audio_string) == ("audio/wav", file.read_bytes())


def test_the_prompt_stands_beside_what_is_shown(tmp_path: Path) -> None:
    summary = summary_of(st.Picture(clip(tmp_path / "clip.webp"), "a *clip*", "clip 8x6"))

    shown = migrate_value(summary.value[0])

    assert shown.metadata.plugin_data.plugin_name == IMAGES
    assert (shown.metadata.display_name, shown.metadata.summary_description) == ("clip 8x6", "a *clip*")
