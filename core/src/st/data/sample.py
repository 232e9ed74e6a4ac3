"""What one item of a data set is, before anything of it is decoded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["image", "video", "audio"]
REFERENCE = "reference"
"""Role of a data set, and begins the names in ``Batch.extras``, of what the model is shown beside the samples."""


@dataclass(frozen=True, slots=True)
class Media:
    """The size of a picture, clip or sound as stored, after its orientation tag is applied.

    height and width in pixels (0 for a sound), frames 1 for a picture and 0 for a sound, fps 0 where there is none,
    seconds 0 for a picture.
    """

    kind: Kind
    height: int = 0
    width: int = 0
    frames: int = 1
    fps: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture, clip or sound with its captions.

    key: stable and unique within its data set (a path relative to the root, or a row). captions: one is drawn each time
    the sample is visited; () for none. extras: name -> key of what belongs to it (``mask``, ``reference``), readable
    from the same backend. facts: what else is known of it in words, by name (``lyrics``, ``bpm``).
    """

    key: str
    media: Media
    captions: tuple[str, ...] = ()
    extras: Mapping[str, str] = field(default_factory=dict)
    size_bytes: int = 0
    modified: float = 0.0
    facts: Mapping[str, str] = field(default_factory=dict)


def reference_name(number: int, tensor: str = "latents") -> str:
    """The name in ``Batch.extras`` of what a sample's references encode to, counted from 0.

    The latents of the first are "reference", of the second "reference2"; another tensor "mask" is "reference_mask".
    """
    name = REFERENCE if number == 0 else f"{REFERENCE}{number + 1}"
    return name if tensor == "latents" else f"{name}_{tensor}"
