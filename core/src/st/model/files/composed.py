"""Composed formats: one format over others, with other names of modules or with more that is read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from st.model.files.formats import UP, AdapterFormat, LoraShape, read_layout, renamed
from st.model.files.peft_layout import TRAINED, header_table, rescaled

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


def folded_format(inner: AdapterFormat) -> AdapterFormat:
    """A format whose low-rank updates have alpha / rank inside of ``lora_B`` and no alpha beside them.

    For programs that read the names and know no alpha. What alpha was is in the header, so that it comes back.
    """
    return _Folded(inner)


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


@dataclass(frozen=True, slots=True)
class _Folded(AdapterFormat):
    inner: AdapterFormat

    def to_file(self, state: Mapping[str, Tensor], shape: LoraShape) -> tuple[dict[str, Tensor], dict[str, str]]:
        scaled = dict(state)
        for path, rank in shape.ranks.items():
            scaled[f"{path}.{UP}"] = rescaled(state[f"{path}.{UP}"], shape.alphas[path] / rank)
        tensors, header = self.inner.to_file(scaled, LoraShape(shape.ranks, {}))
        folded = {path: alpha for path, alpha in shape.alphas.items() if alpha != shape.ranks[path]}
        return tensors, header | ({TRAINED: json.dumps(folded, indent=2, sort_keys=True)} if folded else {})

    def from_file(
        self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
    ) -> tuple[dict[str, Tensor], LoraShape]:
        state, shape = self.inner.from_file(tensors, metadata)
        if TRAINED not in metadata:
            return state, shape
        trained = {path: float(alpha) for path, alpha in header_table(metadata, TRAINED).items() if path in shape.ranks}
        for path, alpha in trained.items():
            state[f"{path}.{UP}"] = rescaled(state[f"{path}.{UP}"], shape.ranks[path] / alpha)
        return state, LoraShape(shape.ranks, {**shape.alphas, **trained})

    def refusals(self, planned: Sequence[Planned]) -> Sequence[str]:
        return self.inner.refusals(planned)

    def caveats(self, planned: Sequence[Planned]) -> Sequence[str]:
        return self.inner.caveats(planned)
