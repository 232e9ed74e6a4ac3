"""What one item of a data set is, before anything of it is decoded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["image", "video", "audio"]


@dataclass(frozen=True, slots=True)
class Media:
    """The size of a picture, clip or sound as stored, after its orientation tag is applied.

    height and width in pixels (0 for a sound), frames 1 for a picture, fps 0 where there is none, seconds 0 for a
    picture.
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
    from the same backend.
    """

    key: str
    media: Media
    captions: tuple[str, ...] = ()
    extras: Mapping[str, str] = field(default_factory=dict)
    size_bytes: int = 0
    modified: float = 0.0
