"""Validation outputs as what event files hold: pictures and clips as image files, sounds as WAV."""

from __future__ import annotations

import wave
from io import BytesIO
from itertools import pairwise
from typing import TYPE_CHECKING

from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata  # type: ignore[import-untyped]

from st.report.files.clip_files import CLIPS, read_frames

if TYPE_CHECKING:
    from st import Picture

SHOWN = ("PNG", "JPEG", "GIF")
"""Formats that TensorBoard serves as what they are, so that a browser shows them."""


def summary_of(picture: Picture) -> Summary:
    """One picture, clip or PCM sound under its label, with its prompt as description.

    PNG, JPEG, GIF and WAV files go in byte for byte; another clip becomes a GIF, another picture a PNG.
    Raises OSError and wave.Error for a file that is none of these.
    """
    metadata = SummaryMetadata(display_name=picture.label, summary_description=picture.prompt)
    medium = {"audio": _sound(picture)} if picture.path.suffix == ".wav" else {"image": _image(picture)}
    return Summary(value=[Summary.Value(tag=picture.label, metadata=metadata, **medium)])


def _image(picture: Picture) -> Summary.Image:
    if picture.path.suffix in CLIPS:
        return _film(picture)
    data = picture.path.read_bytes()
    with Image.open(BytesIO(data)) as image:
        width, height = image.size
        if image.format not in SHOWN:
            data = _converted(image)
    return Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=data)


def _converted(image: Image.Image) -> bytes:
    written = BytesIO()
    if getattr(image, "n_frames", 1) == 1:
        image.save(written, "PNG")
        return written.getvalue()
    frames, milliseconds = [], []
    for place in range(image.n_frames):  # type: ignore[attr-defined]
        image.seek(place)
        image.load()  # the time that a frame is shown is known from here
        frames.append(image.convert("RGB"))
        milliseconds.append(image.info["duration"])
    frames[0].save(written, "GIF", save_all=True, append_images=frames[1:], duration=milliseconds, loop=0)
    return written.getvalue()


def _film(picture: Picture) -> Summary.Image:
    """A clip as a GIF: TensorBoard plays no films."""
    frames, seconds = zip(*read_frames(picture.path), strict=True)
    starts = [round(1000 * one) for one in seconds]
    lengths = [after - before for before, after in pairwise(starts)]
    written = BytesIO()
    frames[0].save(
        written, "GIF", save_all=True, append_images=frames[1:], duration=[*lengths, (lengths or [100])[-1]], loop=0
    )
    width, height = frames[0].size
    return Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=written.getvalue())


def _sound(picture: Picture) -> Summary.Audio:
    with wave.open(str(picture.path)) as sound:
        return Summary.Audio(
            sample_rate=sound.getframerate(),
            num_channels=sound.getnchannels(),
            length_frames=sound.getnframes(),
            encoded_audio_string=picture.path.read_bytes(),
            content_type="audio/wav",
        )
