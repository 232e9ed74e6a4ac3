"""Adapter files of several components: a denoiser and the text encoders that learn with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from st.model.files.formats import AdapterFormat, LoraShape, UnknownTensors, renamed
from st.model.files.peft_layout import METADATA, joined_headers

if TYPE_CHECKING:
    from torch import Tensor

    from st.model.files.readers import Planned

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Part:
    """A component's share of an adapter.

    ours: begins its modules' paths in the denoiser. inside: begins them in a file, after the component's own name.
    theirs: begin its keys in a file. format: how the share is written by itself.
    """

    ours: str
    inside: str
    theirs: tuple[str, ...]
    format: AdapterFormat


@dataclass(frozen=True, slots=True)
class Parts(AdapterFormat):
    """Several components in one file, each in a format of its own. parts: asked when there is a file to convert.

    first: the denoiser's format, which tells what can be written.
    """

    parts: Callable[[], Iterable[Part]]
    first: AdapterFormat

    def to_file(self, state: Mapping[str, Tensor], shape: LoraShape) -> tuple[dict[str, Tensor], dict[str, str]]:
        tensors: dict[str, Tensor] = {}
        header: dict[str, str] = {}
        for part in self.parts():
            mine = {key: tensor for key, tensor in state.items() if key.startswith(part.ours)}
            if not mine:
                continue
            within = LoraShape(_beginning(shape.ranks, part.ours), _beginning(shape.alphas, part.ours))

            def inside(path: str, part: Part = part) -> str:
                return part.inside + path.removeprefix(part.ours)

            found, metadata = part.format.to_file(*renamed(mine, within, inside))
            tensors |= found
            header = joined_headers(header, _without(metadata, part.inside))
        return tensors, header

    def from_file(
        self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
    ) -> tuple[dict[str, Tensor], LoraShape]:
        state: dict[str, Tensor] = {}
        ranks, alphas = dict[str, int](), dict[str, float]()
        left = set(tensors)
        for part in self.parts():
            mine = {key: tensor for key, tensor in tensors.items() if key.startswith(part.theirs)}
            left -= mine.keys()
            if not mine:
                continue

            def outside(path: str, part: Part = part) -> str:
                return part.ours + path.removeprefix(part.inside)

            found, shape = renamed(*part.format.from_file(mine, metadata), outside)
            state |= found
            ranks |= shape.ranks
            alphas |= shape.alphas
        if left:
            begin = ", ".join(start for part in self.parts() for start in part.theirs)
            raise UnknownTensors(sorted(left), len(tensors), why=f"in this format their names begin with {begin}")
        return state, LoraShape(ranks, alphas)

    def refusals(self, planned: Sequence[Planned]) -> Sequence[str]:
        return self.first.refusals(planned)

    def caveats(self, planned: Sequence[Planned]) -> Sequence[str]:
        return self.first.caveats(planned)


def _beginning(table: Mapping[str, T], start: str) -> dict[str, T]:
    return {path: value for path, value in table.items() if path.startswith(start)}


def _without(header: Mapping[str, str], inside: str) -> dict[str, str]:
    """A header that names what is inside of a text encoder by the end of its path: some versions of its class have a
    module around all others that is called so, and others have none.
    """
    found = dict(header)
    if inside and METADATA in header:
        found[METADATA] = header[METADATA].replace(f"^{inside}", "").replace(inside, "")
    return found
