"""Composed formats: one format over others, with other names of modules or with more that is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from st.model.files.formats import AdapterFormat, LoraShape, read_layout, renamed

if TYPE_CHECKING:
    from torch import Tensor

    from st.model.files.readers import Planned


def renamed_format(inner: AdapterFormat, theirs: Callable[[str], str], ours: Callable[[str], str]) -> AdapterFormat:
    """Another format, for a denoiser whose modules have other names there. ours: the inverse of ``theirs``.

    Either raises StError for a path that it has no name for.
    """
    return _Renamed(inner, theirs, ours)


def reading_also(written: AdapterFormat, *read: AdapterFormat) -> AdapterFormat:
    """A format that is written as it is, and reads files of the others too."""
    return _ReadingAlso(written, read)


@dataclass(frozen=True, slots=True)
class _Renamed(AdapterFormat):
    inner: AdapterFormat
    theirs: Callable[[str], str]
    ours: Callable[[str], str]

    def to_file(self, state: Mapping[str, Tensor], shape: LoraShape) -> tuple[dict[str, Tensor], dict[str, str]]:
        return self.inner.to_file(*renamed(state, shape, self.theirs))

    def from_file(
        self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
    ) -> tuple[dict[str, Tensor], LoraShape]:
        return renamed(*self.inner.from_file(tensors, metadata), self.ours)

    def refusals(self, planned: Sequence[Planned]) -> Sequence[str]:
        return self.inner.refusals(planned)

    def caveats(self, planned: Sequence[Planned]) -> Sequence[str]:
        return self.inner.caveats(planned)


@dataclass(frozen=True, slots=True)
class _ReadingAlso(AdapterFormat):
    written: AdapterFormat
    read: tuple[AdapterFormat, ...]

    def to_file(self, state: Mapping[str, Tensor], shape: LoraShape) -> tuple[dict[str, Tensor], dict[str, str]]:
        return self.written.to_file(state, shape)

    def from_file(
        self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
    ) -> tuple[dict[str, Tensor], LoraShape]:
        return read_layout(tensors, metadata, (self.written, *self.read))

    def refusals(self, planned: Sequence[Planned]) -> Sequence[str]:
        return self.written.refusals(planned)

    def caveats(self, planned: Sequence[Planned]) -> Sequence[str]:
        return self.written.caveats(planned)
