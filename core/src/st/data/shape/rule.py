"""GeometryRule: which sizes a family accepts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from st.data.geometry import Geometry
from st.errors import StError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from st.data.sample import Media

USUAL_ALIGNMENT = 64
"""Pixels by which bucket edges are apart where nothing else is asked for: few enough buckets, small enough trims."""


@dataclass(frozen=True, slots=True)
class GeometryRule:
    """Sizes a family accepts.

    multiple: both edges are whole multiples of it, in pixels. frames_modulus and frames_remainder: a clip's frames
    leave that remainder (8 and 1 accept 1, 9, 17, ...). max_pixels: the most height * width that the denoiser takes,
    max_edge: the longest edge, in pixels (a table of positions has so many places); 0 for no limit.
    """

    multiple: int = 16
    frames_modulus: int = 1
    frames_remainder: int = 1
    max_pixels: int = 0
    max_edge: int = 0

    def nearest(self, media: Media, area: float) -> Geometry:
        """The accepted size closest to ``media``'s shape at about ``area`` pixels.

        A size that the rule made is returned unchanged by the rule: ``nearest`` of it at its own area is itself.
        """
        frames = self.frames(media.frames)
        if not media.height or not media.width:
            return Geometry(frames=frames, seconds=media.seconds)
        aspect = media.width / media.height
        width = self._round(math.sqrt(area * aspect))
        height = self._round(math.sqrt(area / aspect))
        if self.max_edge and max(width, height) > self.max_edge:
            scale = self.max_edge / max(width, height)
            width, height = (min(self._round(edge * scale), self._longest) for edge in (width, height))
        while self.max_pixels and width * height > self.max_pixels and max(width, height) > self.multiple:
            if width >= height:
                width -= self.multiple
            else:
                height -= self.multiple
        return Geometry(height=height, width=width, frames=frames)

    def accepts(self, geometry: Geometry) -> bool:
        """Whether a denoiser of the family can be given exactly this size."""
        if not geometry.height:
            return geometry.seconds > 0
        edges = geometry.height % self.multiple == 0 and geometry.width % self.multiple == 0
        fits = not self.max_pixels or geometry.height * geometry.width <= self.max_pixels
        fits = fits and (not self.max_edge or max(geometry.height, geometry.width) <= self.max_edge)
        return edges and fits and self.frames(geometry.frames) == geometry.frames

    def caps(self, height: float, width: float) -> bool:
        """Whether a size of so many pixels is more than the denoiser takes."""
        return bool(self.max_pixels) and height * width > self.max_pixels

    def capped(self, resolution: float, area: float) -> Iterator[str]:
        """A sentence where a resolution asks for pictures of more pixels than the denoiser takes."""
        if self.caps(1, area):
            most = f"{self.max_pixels:,} pixels, as of {math.isqrt(self.max_pixels)} squared"
            yield f"resolution = {resolution:g} is more than this model takes; pictures get at most {most}"

    def frames(self, available: int) -> int:
        """The largest accepted number of frames that is at most ``available``; 0 where there is none."""
        return max(0, available - (available - self.frames_remainder) % self.frames_modulus)

    def alignment(self, asked: int) -> int:
        """Pixels by which bucket edges are apart; ``asked`` 0 means 64, or the next whole multiple of ``multiple``.

        Raises StError where ``asked`` is no multiple of ``multiple``, or above ``max_edge``: the denoiser could not be
        given such sizes.
        """
        if asked == 0:
            usual = -(-USUAL_ALIGNMENT // self.multiple) * self.multiple
            return min(usual, self._longest) if self.max_edge else usual
        if self.max_edge and asked > self._longest:
            raise StError(
                f"align = {asked} gives sizes that the model does not take.",
                why=f"Its pictures have edges of at most {self.max_edge} pixels.",
                fix=f"Set align = {self._longest} or less.",
            )
        if asked % self.multiple:
            fix = -(-asked // self.multiple) * self.multiple
            raise StError(
                f"align = {asked} gives sizes that the model does not take.",
                why=f"Its pictures have edges in whole multiples of {self.multiple} pixels.",
                fix=f"Set align = {fix}.",
            )
        return asked

    @property
    def _longest(self) -> int:
        return self.max_edge // self.multiple * self.multiple

    def _round(self, edge: float) -> int:
        return max(self.multiple, round(edge / self.multiple) * self.multiple)
