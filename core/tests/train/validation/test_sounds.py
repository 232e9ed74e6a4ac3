"""Sounds are rendered as pictures are: by the core's sampler, into files that play, on the page with an outline."""

from __future__ import annotations

import wave
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import soundfile
import torch
from torch import Tensor, nn

from st.data.encoder import Input, LatentCodec
from st.data.geometry import Geometry
from st.data.sets.words import Words
from st.diffusion.objective import Batch, Noised
from st.diffusion.sampler import euler
from st.errors import StError
from st.report.files.picture_files import save_picture
from st.report.files.sound_files import waveform
from st.report.page.page import RunPage
from st.report.rendering.asked import ValidationOptions, prompts_to_encode
from st.report.rendering.prompts import check_facts
from st.report.rendering.rendering import encode_texts
from st.testing.subjects.tiny import TinyFamily
from st.testing.subjects.tiny_parts import CHANNELS
from st.train.parts.run import Run
from st.train.validation.validation import PromptValidator

if TYPE_CHECKING:
    from st.data.encoder import Encode

RATE = 2000
OPTIONS = ValidationOptions.model_validate(
    {
        "every": 1,
        "seconds": 0.48,
        "steps": 2,
        "guidance": 1.0,
        "compare_base": False,
        "prompts": ["a bell", {"prompt": "a drum", "seconds": 0.96, "facts": {"lyrics": "la", "bpm": 90}}],
    }
)


class Patches(LatentCodec):
    """A sound of one channel, cut into as many numbers as a latent has channels. told: whether it says its shapes."""

    name, reads, sample_rate, channels = "patches", ("audio",), RATE, 1
    fingerprint = "patches"

    def __init__(self, told: bool) -> None:
        self.told = told
        self.heard: list[Input] = []

    def latent_shape(self, geometry: Geometry) -> tuple[int, ...] | None:
        return (CHANNELS, round(geometry.seconds * RATE) // CHANNELS) if self.told else None

    @contextmanager
    def open(self, device: torch.device) -> Iterator[Encode]:
        def encode(inputs: Sequence[Input]) -> list[Mapping[str, Tensor]]:
            self.heard += inputs
            sounds = [one.audio for one in inputs if one.audio is not None]
            return [{"latents": sound.reshape(-1, CHANNELS).T} for sound in sounds]

        yield encode

    @contextmanager
    def decoder(self, device: torch.device) -> Iterator[Callable[[Tensor], Tensor]]:
        yield lambda latents: latents.transpose(1, 2).reshape(len(latents), 1, -1).tanh()


class Singer(TinyFamily):
    """The tiny family, whose latents are a row of moments."""

    patches: Patches

    def codec(self) -> LatentCodec:
        return self.patches

    def predict(self, denoiser: nn.Module, noised: Noised, batch: Batch) -> Tensor:
        return super().predict(denoiser, replace(noised, x=noised.x.unsqueeze(2)), batch).squeeze(2)


@pytest.fixture
def make_run(run: Run) -> Callable[[bool], Run]:
    """A run of the family, whose codec says the shapes of latents, or not."""

    def make(told: bool) -> Run:
        family = Singer(run.family.options)
        family.patches = Patches(told)
        return replace(run, family=family)

    return make


def validate(run: Run) -> list[Path]:
    encodings = encode_texts(run.family, prompts_to_encode(OPTIONS), run.device)
    pictures, _ = PromptValidator(OPTIONS, encodings, euler)(run)
    run.report.pictures(0, pictures)
    return [one.path for one in pictures]


@pytest.mark.parametrize("told", [True, False])
def test_sounds_have_the_length_that_each_prompt_asks_for(make_run: Callable[[bool], Run], told: bool) -> None:
    run = make_run(told)

    files = validate(run)

    assert [file.name for file in files] == ["a-bell-0.48s.wav", "a-drum-0.96s.wav"]
    assert [soundfile.info(file).frames for file in files] == [960, 1920]
    assert {soundfile.info(file).samplerate for file in files} == {RATE}
    heard = run.family.codec().heard  # type: ignore[attr-defined]
    silence = [(one.audio.shape, bool(one.audio.any())) for one in heard]
    assert silence == ([] if told else [((1, 960), False), ((1, 1920), False)])


def test_the_page_plays_sounds_and_draws_them(make_run: Callable[[bool], Run]) -> None:
    run = make_run(True)
    files = validate(run)

    page = RunPage(run.directory).write().read_text(encoding="utf-8")

    for file in files:
        assert f'<audio controls preload="none" src="samples/step-00000003/{file.name}"></audio>' in page
    assert page.count("data:image/svg+xml;base64,") == 2
    files[0].write_bytes(b"not a sound any more")
    again = RunPage(run.directory).write().read_text(encoding="utf-8")
    assert again.count("<audio ") == 2
    assert again.count("data:image/svg+xml;base64,") == 1


def test_a_sound_is_written_as_it_is_with_what_it_was_made_of(tmp_path: Path) -> None:
    sound = torch.tensor([[0.5, -0.25, float("nan"), 3.0], [0.0, 0.125, -9.0, float("inf")]])

    written = save_picture(sound, tmp_path / "new" / "song", {"parameters": "a song\nSteps: 3"}, 8000)

    assert written == tmp_path / "new" / "song.wav"
    read, rate = soundfile.read(written, always_2d=True)
    assert rate == 8000
    expected = [[0.5, -0.25, 0, 1], [0, 0.125, -1, 0]]
    torch.testing.assert_close(torch.from_numpy(read.T), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=4e-5)
    with soundfile.SoundFile(written) as file:
        assert file.comment == "a song\nSteps: 3"
    # Trackers read it with the standard library.
    with wave.open(str(written)) as plain:
        assert (plain.getframerate(), plain.getnchannels(), plain.getnframes(), plain.getsampwidth()) == (8000, 2, 4, 2)


def test_a_comment_that_is_too_long_for_the_file_loses_its_end_only(tmp_path: Path) -> None:
    written = save_picture(torch.zeros(1, 8), tmp_path / "song", {"parameters": "\u6b4c" * 5000}, 8000)

    with soundfile.SoundFile(written) as file:
        assert file.comment == "\u6b4c" * 680 + "..."


def test_an_outline_is_tall_where_a_sound_is_loud(tmp_path: Path) -> None:
    sound = torch.cat([torch.zeros(1, 500), torch.full((1, 500), 0.75)], dim=1)
    file = save_picture(sound, tmp_path / "half", {}, 1000)

    outline = waveform(file)

    bars = [part.split("V") for part in outline.split('d="')[1].split('"')[0].split("M")[1:]]
    heights = [float(down) - float(start.split()[1]) for start, down in bars]
    assert max(heights[:119]) < 2
    assert min(heights[121:]) == pytest.approx(0.75 * 64, abs=0.2)


def test_what_is_told_beside_a_prompt_is_encoded_with_it() -> None:
    bell, drum = prompts_to_encode(OPTIONS)

    assert bell == Words("a bell", {"seconds": "0.48"})
    assert drum == Words("a drum", {"lyrics": "la", "bpm": "90", "seconds": "0.96"})
    assert bell != Words("a bell", {"seconds": "1"})


def test_a_library_of_songs_says_what_is_sung(tmp_path: Path) -> None:
    library = tmp_path / "songs.json"
    library.write_text('{"hymn": {"caption": "a choir", "lyrics": "la", "seconds": 4, "facts": {"bpm": 60}}}')

    (hymn,) = ValidationOptions(library=str(library)).wanted()

    assert (hymn.name, hymn.seconds) == ("hymn", 4)
    assert hymn.words == Words("a choir", {"lyrics": "la", "bpm": "60", "seconds": "4"})


def test_a_fact_that_no_encoder_reads_is_named(make_run: Callable[[bool], Run]) -> None:
    class Reader(Patches):
        reads, facts = ("caption",), ("lyrics", "beats", "seconds")

    with pytest.raises(StError, match="validation prompt 'a-drum': this model is told no 'bpm'"):
        check_facts(OPTIONS.wanted(), [Reader(True)])
    check_facts(OPTIONS.wanted()[:1], [])
