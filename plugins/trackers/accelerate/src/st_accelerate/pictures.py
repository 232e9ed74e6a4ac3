"""Validation pictures as accelerate's trackers take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from accelerate.tracking import GeneralTracker, TensorBoardTracker  # type: ignore[import-untyped]
from PIL import Image

from st.report.files.clip_files import CLIPS, read_frames

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from st import Picture

SOUNDS = frozenset({".wav", ".flac", ".mp3", ".ogg"})


def images_of(pictures: Sequence[Picture]) -> dict[str, NDArray[np.uint8]]:
    """Pictures, and first frames of clips, by label: (height, width, 3). Sounds are left out. Raises OSError."""
    images = {}
    for picture in pictures:
        if picture.path.suffix.lower() in CLIPS:
            first, _ = next(read_frames(picture.path))
            images[picture.label] = np.asarray(first)
        elif picture.path.suffix.lower() not in SOUNDS:
            with Image.open(picture.path) as image:
                images[picture.label] = np.asarray(image.convert("RGB"))
    return images


def log_images(tracker: GeneralTracker, images: Mapping[str, NDArray[np.uint8]], step: int) -> None:
    """Give images to a tracker that has ``log_images``, each in a list of its own: their sizes may differ."""
    values: dict[str, Any] = {label: [image] for label, image in images.items()}
    arguments: dict[str, Any] = {}
    if isinstance(tracker, TensorBoardTracker):
        # It passes values on to SummaryWriter.add_images, which takes no list and expects the channels first.
        values = {label: image[None] for label, image in images.items()}
        arguments = {"dataformats": "NHWC"}
    tracker.log_images(values, step=step, **arguments)
