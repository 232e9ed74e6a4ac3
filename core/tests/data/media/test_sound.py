"""Sounds: what is decoded is compared with the wave that was written."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import soxr

from st.data.geometry import Fit, Geometry
from st.data.media.sound import SoundReader, mixed
from st.data.sample import Media
from st.data.source.folder import FolderBackend, FolderOptions
from st.errors import SampleUnreadable
from st.testing.media import tone, write_clip, write_sound


def fit(seconds: float, start: float = 0.0) -> Fit:
    return Fit(Geometry(frames=0, seconds=seconds), (0, 0), (0, 0), 0.0, start=start)


def heard(path: Path, place: Fit, rate: int = 0, channels: int = 0) -> np.ndarray:
    with path.open("rb") as file:
        return SoundReader().audio(path.name, file, place, rate, channels)


def header(folder: Path, key: str) -> Media:
    return SoundReader().header(FolderBackend(str(folder), FolderOptions(media="audio")), key).media


@pytest.mark.parametrize(("extension", "error"), [("wav", 1e-4), ("flac", 1e-4), ("ogg", 0.03), ("mp3", 0.03)])
def test_every_format_gives_its_samples(tmp_path: Path, extension: str, error: float) -> None:
    wave = tone(2.0, 44100, channels=2)
    path = write_sound(tmp_path / f"tone.{extension}", wave, 44100)

    assert header(tmp_path, path.name) == Media("audio", frames=0, seconds=2.0)
    window = heard(path, fit(1.0, start=0.5))
    assert window.dtype == np.float32 and window.shape == (2, 44100)
    # Lossy formats change the samples; a shift by one of them would change this tone by more.
    assert np.abs(window - wave[:, 22050:66150]).max() < error


def test_a_window_is_resampled_to_exactly_its_length(tmp_path: Path) -> None:
    wave = tone(3.0, 44100)
    path = write_sound(tmp_path / "tone.flac", wave, 44100)

    for rate in (16000, 24000, 48000):
        window = heard(path, fit(1.5, start=1.0), rate, 1)
        whole = soxr.resample(wave[0], 44100, rate)
        assert window.shape == (1, 1.5 * rate)
        # What lies outside the margin does not reach the window, up to the 16 bits of the file.
        assert np.abs(window[0] - whole[rate : rate + window.shape[1]]).max() < 1e-4


def test_loudness_is_left_alone(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "quiet.wav", tone(1.0, 48000, loud=0.01), 48000)

    assert np.abs(heard(path, fit(1.0), 24000, 1)).max() == pytest.approx(0.01, rel=0.01)


def test_mono_and_stereo_are_made_of_one_another() -> None:
    stereo = np.array([[0.2, 0.4], [0.6, 0.0]], np.float32)

    assert mixed("x", stereo, 1).tolist() == [[pytest.approx(0.4), pytest.approx(0.2)]]
    assert np.array_equal(mixed("x", stereo[:1], 2), stereo[[0, 0]])
    assert mixed("x", stereo, 2) is stereo


def test_surround_is_mixed_down_without_its_low_frequencies() -> None:
    left, right, centre, low, behind = np.eye(5, dtype=np.float32)
    channels = np.stack([left, right, centre, low, behind, behind])

    stereo = mixed("x", channels, 2)

    half = np.sqrt(0.5)
    assert np.allclose(stereo, [[1, 0, half, 0, half], [0, 1, half, 0, half]])
    with pytest.raises(SampleUnreadable, match="5 channels"):
        mixed("x", channels[:5], 2)


def test_the_sound_track_of_a_clip_is_a_sound(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    wave = generator.normal(scale=0.1, size=(1, 3 * 48000)).astype(np.float32)
    path = write_clip(tmp_path / "clip.mp4", 30, sound=wave)

    window = heard(path, fit(1.0, start=1.25))

    assert header(tmp_path, "clip.mp4").seconds == pytest.approx(3.0, abs=0.05)
    assert window.shape == (1, 48000)
    written = wave[0, 60000:108000]
    shifts = {shift: float(np.dot(window[0, 100:-100], np.roll(written, shift)[100:-100])) for shift in range(-3, 4)}
    assert max(shifts, key=lambda shift: shifts[shift]) == 0


def test_a_clip_without_sound_is_named(tmp_path: Path) -> None:
    write_clip(tmp_path / "silent.mp4", 3)

    with pytest.raises(SampleUnreadable, match=r"silent\.mp4.*no sound track"):
        header(tmp_path, "silent.mp4")


def test_what_is_no_sound_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.mp3").write_bytes(b"no sound at all")
    (tmp_path / "empty.wav").write_bytes(b"")

    for name, reason in (("text.mp3", "not a sound"), ("empty.wav", "empty")):
        with pytest.raises(SampleUnreadable, match=reason):
            header(tmp_path, name)


def test_a_sound_that_ends_before_its_window_is_named(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "tone.wav", tone(1.0, 16000), 16000)

    with pytest.raises(SampleUnreadable, match=r"it ends after 1\.00 s; 2\.00 s are needed"):
        heard(path, fit(2.0))


def test_a_packet_that_is_missing_at_the_end_is_silence(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "tone.wav", tone(1.0, 16000), 16000)

    window = heard(path, fit(1.05))

    assert window.shape == (1, 16800) and not window[0, 16000:].any() and window[0, 15000:16000].any()


@pytest.mark.parametrize("bits", [0, 99])
def test_a_sound_of_a_strange_number_of_bits_is_named(tmp_path: Path, bits: int) -> None:
    form = struct.pack("<HHIIHH", 1, 1, 8000, 16000, 2, bits)
    data = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", 8000) + bytes(8000)
    (tmp_path / "a.wav").write_bytes(b"RIFF" + struct.pack("<I", len(data)) + data)

    with pytest.raises(SampleUnreadable, match="an encoding that is not known"):
        header(tmp_path, "a.wav")
