"""Clips with their sounds, trained together: both streams learn, a clip without sound is named, both are rendered."""

from __future__ import annotations

import json
from pathlib import Path

import av
import pytest

from st.testing.media import tone, write_clip
from st.testing.runs import CliResult, TinyRun, call_cli
from st.testing.subjects.duo import TinyDuo

RUN_FILE = """
plugins = {plugins}
output = {output}
steps = 6
batch = 2
precision = "fp32"
device = "cpu"
[model]
checkpoint = {checkpoint}
{model}
[adapter]
kind = "full"
[optimizer]
lr = 5e-3
[report]
every = 1
[[dataset]]
url = {clips}
media = "video"
resolution = 16
align = 8
num_frames = 4
fps = 8
caption_dropout = 0.0
{text}
"""


LISTENER = """
import st

class Listener(st.Validator):
    \"\"\"What is heard with each clip.\"\"\"

    class Options(st.Options):
        pass

    scores_pictures = True

    def validate(self, run, rendered):
        (sound,) = [one.sound for one in rendered]
        dims, samples = sound.samples.ndim, sound.samples.shape[-1]
        return st.ValidationReport({"rate": sound.sample_rate, "dims": dims, "samples": samples})

class Brings:
    \"\"\"Bring the validator "listener".\"\"\"

    class Options(st.Options):
        pass

    def __init__(self, options):
        pass

    @st.hookimpl
    def st_register(self, register):
        register.add(st.VALIDATOR, "listener", Listener, Listener.Options)
"""


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Three clips with sound and one without."""
    folder = tmp_path / "clips"
    for number in range(4):
        sound = tone(1, 8000, 300 + 100 * number) if number else None
        write_clip(folder / f"{number}.mp4", 6, rate=8, size=(16, 16), sound=sound, sound_rate=8000)
        (folder / f"{number}.txt").write_text(f"clip {number}", encoding="utf-8")
    return folder


def trained(
    folder: Path, clips: Path, *arguments: str, model: str = "", text: str = "", also: tuple[str, ...] = ()
) -> TinyRun:
    TinyDuo.tiny(folder / "tiny")
    import st.testing.subjects.duo

    names = {
        "plugins": [f"{st.testing.subjects.duo.__file__}:TinyDuo", *also],
        "output": folder / "run",
        "checkpoint": folder / "tiny",
    }
    quoted = {
        name: json.dumps(value if isinstance(value, list) else str(value))
        for name, value in {**names, "clips": clips}.items()
    }
    file = folder / "run.toml"
    file.write_text(RUN_FILE.format(**quoted, model=model, text=text), encoding="utf-8")
    result = call_cli("train", file, *arguments)
    assert result.code == 0, f"{result.err}\n{result.out}"
    return TinyRun(folder / "run", result)


def test_both_streams_learn_and_a_clip_without_sound_is_named(clips: Path, tmp_path: Path) -> None:
    run = trained(tmp_path, clips)

    metrics = run.metrics()
    named = [event for event in run.events() if event.get("kind") == "stream"]
    assert metrics["term/clip"][-1] < metrics["term/clip"][0]
    assert metrics["term/sound"][-1] < metrics["term/sound"][0]
    assert [(event["key"], event["stream"]) for event in named] == [("0.mp4", "sound")]
    assert "no sound track" in named[0]["text"]
    assert len(run.warnings("1 of 4 samples have no 'sound'")) == 1


def test_a_clip_without_sound_trains_what_it_has_from_a_warm_cache_too(clips: Path, tmp_path: Path) -> None:
    trained(tmp_path, clips, "--set", "steps=1")

    cache = f"cache.url={tmp_path / 'run' / 'cache'}"
    trained(tmp_path, clips, "--set", "steps=3", "--set", cache, "--set", f"output={tmp_path / 'second'}")

    again = TinyRun(tmp_path / "second", CliResult(0, "", ""))
    assert [event["key"] for event in again.events() if event.get("kind") == "stream"] == ["0.mp4"]
    assert len(again.metrics()["term/sound"]) == 3


def test_the_weight_of_a_stream_is_what_it_counts(clips: Path, tmp_path: Path) -> None:
    run = trained(tmp_path, clips, "--set", "steps=1", text="[streams]\nweight = {sound = 0.0}")

    (loss,), (clip,) = run.metrics()["loss"], run.metrics()["term/clip"]
    assert loss == pytest.approx(clip)


def test_a_weight_of_no_stream_is_refused(clips: Path, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"names 'smell'[^$]*Its streams are 'clip', 'sound'"):
        trained(tmp_path, clips, text="[streams]\nweight = {smell = 1.0}")


def test_a_clip_is_rendered_with_its_sound_and_evaluated(clips: Path, tmp_path: Path) -> None:
    text = (
        '[validation]\nevery = 1\nprompts = ["clip 1 --s 2"]\nresolutions = ["16"]\nframes = 4\nguidance = 2.0\n'
        f"[evaluation]\nevery = 1\ntimes = 4\n[[dataset]]\nurl = {json.dumps(str(clips))}\nname = 'kept'\n"
        'media = "video"\nrole = "evaluation"\nresolution = 16\nalign = 8\nnum_frames = 4\nfps = 8\n'
    )

    run = trained(tmp_path, clips, "--set", "steps=1", text=text)

    assert not run.warnings("could not be")
    (file, *_) = sorted((run.directory / "samples" / "step-00000001").glob("*.mp4"))
    with av.open(str(file)) as made:
        assert len(list(made.decode(video=0))) == 4
    with av.open(str(file)) as made:
        assert sum(frame.samples for frame in made.decode(audio=0)) >= 4000
    assert len(run.metrics()["eval/kept"]) >= 1


def test_a_validator_is_given_the_sound_of_a_clip(clips: Path, tmp_path: Path) -> None:
    listener = tmp_path / "listener.py"
    listener.write_text(LISTENER)
    text = (
        "[validation]\nevery = 1\nprompts = ['clip 1']\nresolutions = ['16']\nframes = 4\nguidance = 1.0\nsteps = 2\n"
        "[[validator]]\nkind = 'listener'\nevery = 1\n"
    )

    run = trained(tmp_path, clips, "--set", "steps=1", text=text, also=(f"{listener}:Brings",))

    found = run.metrics()
    assert found["listener/rate"][-1] == 8000
    assert found["listener/dims"][-1] == 2
    assert found["listener/samples"][-1] >= 4000


def test_a_clip_begins_with_the_reference_of_its_prompt(clips: Path, tmp_path: Path) -> None:
    from PIL import Image

    picture = tmp_path / "first.png"
    Image.new("RGB", (16, 16), (200, 40, 90)).save(picture)
    text = (
        f"[validation]\nevery = 1\nresolutions = ['16']\nframes = 4\nguidance = 1.0\nsteps = 2\n"
        f"prompts = [{{prompt = 'clip 1', references = [{json.dumps(str(picture))}]}}]\n"
    )

    run = trained(tmp_path, clips, "--set", "steps=1", model="begins = true", text=text)

    (file,) = sorted((run.directory / "samples" / "step-00000001").glob("*.mp4"))
    with av.open(str(file)) as made:
        first = next(made.decode(video=0)).to_ndarray(format="rgb24")
    assert abs(first.astype(int) - (200, 40, 90)).max() <= 12
