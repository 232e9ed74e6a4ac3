"""Adapter files of several components: a denoiser and the text encoders that learn with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from st.model.files.formats import METADATA, AdapterFormat, LoraShape, UnknownTensors, split_key

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Part:
    """A component's share of an adapter.

    ours: begins its modules' paths in the denoiser. inside: begins them in a file, after the component's own name.
    theirs: begins its keys in a file. format: how the share is written by itself.
    """

    ours: str
    inside: str
    theirs: str
    format: AdapterFormat


@dataclass(frozen=True, slots=True)
class Parts(AdapterFormat):
    """Several components in one file, each in a format of its own. parts: asked when there is a file to convert."""

    parts: Callable[[], Iterable[Part]]

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
            header = _joined(header, metadata, part.inside)
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
            begin = ", ".join(part.theirs for part in self.parts())
            raise UnknownTensors(sorted(left), len(tensors), why=f"in this format their names begin with {begin}")
        return state, LoraShape(ranks, alphas)


def renamed(
    state: Mapping[str, Tensor], shape: LoraShape, name: Callable[[str], str]
) -> tuple[dict[str, Tensor], LoraShape]:
    """The same adapter for modules with other paths."""
    tensors = {}
    for key, tensor in state.items():
        split = split_key(key)
        assert split is not None, f"{key!r} is not one of our names"
        tensors[f"{name(split[0])}.{split[1]}"] = tensor
    ranks = {name(path): rank for path, rank in shape.ranks.items()}
    return tensors, LoraShape(ranks, {name(path): alpha for path, alpha in shape.alphas.items()})


def _beginning(table: Mapping[str, T], start: str) -> dict[str, T]:
    return {path: value for path, value in table.items() if path.startswith(start)}


def _joined(header: Mapping[str, str], further: Mapping[str, str], inside: str) -> dict[str, str]:
    """Two headers as one. What is inside a text encoder is named by the end of its path: some versions of its class
    have a module around all others that is called so, and others have none.
    """
    if METADATA not in header or METADATA not in further:
        return {**header, **further, **_without(further, inside)}
    both = {**json.loads(header[METADATA]), **json.loads(_without(further, inside)[METADATA])}
    return {**header, METADATA: json.dumps(both, indent=2, sort_keys=True)}


def _without(header: Mapping[str, str], inside: str) -> dict[str, str]:
    if not inside or METADATA not in header:
        return {}
    return {METADATA: header[METADATA].replace(f"^{inside}", "").replace(inside, "")}
