"""Geometry: the sizes a model accepts, and the one a sample gets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Geometry:
    """What one bucket holds: a picture (height, width), a clip (frames, height, width) or a sound (seconds).

    Pixels and frames are whole numbers. A picture has frames 1 and seconds 0; a sound has height, width and frames 0.
    """

    height: int = 0
    width: int = 0
    frames: int = 1
    seconds: float = 0.0

    def __str__(self) -> str:
        return self.label if self.height else f"{self.seconds:g}s"

    @property
    def label(self) -> str:
        """The same, exactly: no two geometries share it. Nine digits tell any two lengths of 32 bits apart."""
        if not self.height:
            return f"{self.seconds:.9g}s"
        clip = "" if self.frames == 1 else f"x{self.frames}"
        return f"{self.width}x{self.height}{clip}"


@dataclass(frozen=True, slots=True)
class Fit:
    """How a sample gets to its geometry: resized to ``resized``, which covers it in the original aspect, then cropped.

    resized: (height, width) in pixels. crop: (top, left) in the resized picture. aspect: the bucket's key, width /
    height rounded to two decimals. start: where in a clip or sound its window begins, in seconds. rate: frames per
    second of a clip's window, 0 of a picture or sound, and of a clip whose own rate is not known before it is opened.
    """

    geometry: Geometry
    resized: tuple[int, int]
    crop: tuple[int, int]
    aspect: float
    start: float = 0.0
    rate: float = 0.0

    @property
    def duration(self) -> float:
        """Seconds of a window; 0 of a picture."""
        return self.geometry.frames / self.rate if self.rate else self.geometry.seconds
