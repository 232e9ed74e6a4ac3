"""Rendered clips as files, and the frames of a clip in a file."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

from st.importing import needing

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from PIL import Image
    from torch import Tensor

    from st.report.files.sound_files import Sound

CLIPS = frozenset({".mp4", ".webm"})
"""Endings of files that browsers play as clips."""
QUALITY = "16"
"""Constant rate factor of x264: hardly to be told from the frames."""


def save_clip(
    pixels: Tensor, path: Path, facts: Mapping[str, str], frames_per_second: float, sound: Sound | None = None
) -> Path:
    """Write a clip (3, F, H, W) in [0, 1] as MP4 (H.264, AAC), which every browser plays; the written file.

    path: without a suffix. sound: what is heard with it. facts: the comment in the file. Values that are not finite are
    black. The format wants even edges: an odd one is repeated.
    """
    import numpy as np

    av = _av()
    array = (pixels.float().nan_to_num(0.0).clamp(0, 1) * 255).round().byte().cpu().numpy().transpose(1, 2, 3, 0)
    array = np.pad(array, ((0, 0), (0, array.shape[1] % 2), (0, array.shape[2] % 2), (0, 0)), mode="edge")
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name(path.name + ".mp4")
    with av.open(str(written), "w", options={"movflags": "faststart"}) as container:
        container.metadata["comment"] = "\n".join(facts.values())
        stream = container.add_stream("libx264", rate=Fraction(frames_per_second).limit_denominator(1001))
        stream.height, stream.width = array.shape[1:3]
        stream.pix_fmt, stream.options = "yuv420p", {"crf": QUALITY}
        # Every stream is there before the first packet, which the container's header waits for.
        track = sound and container.add_stream("aac", rate=sound.sample_rate, layout=sound.layout)
        for frame in array:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
        if sound and track:
            heard = np.ascontiguousarray(sound.samples.float().nan_to_num(0.0).clamp(-1, 1).cpu().numpy())
            frame = av.AudioFrame.from_ndarray(heard, format="fltp", layout=sound.layout)
            frame.sample_rate = sound.sample_rate
            container.mux(track.encode(frame))
            container.mux(track.encode())
    return written


def read_frames(path: Path) -> Iterator[tuple[Image.Image, float]]:
    """The frames of a clip in order, each with the seconds from the beginning. Raises OSError for what is no clip."""
    av = _av()
    try:
        with av.open(str(path)) as container:
            for frame in container.decode(video=0):
                yield frame.to_image(), float(frame.time or 0.0)
    except (av.error.FFmpegError, IndexError) as error:
        raise OSError(f"{str(path)!r} is no clip that can be read: {error}") from error


def _av() -> Any:
    with needing("av", "clips are written and read with PyAV", "clips"):
        import av
    return av
