"""Fused layers: formats in which one layer stands for several of ours, as for query, key and value of an attention.

Such a layer stacks their outputs. One low-rank update of it holds theirs on a diagonal of blocks: the rows of ``down``
are stacked, ``up`` is zero where one's rank meets another's outputs. What has no update is zero there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from st.errors import StError
from st.model.adapters.targets import is_named
from st.model.files.formats import AdapterFormat, LoraShape, by_layer
from st.model.files.stacking import Update, read_updates, stack, unstack, write_updates

if TYPE_CHECKING:
    from torch import Tensor

    from st.model.files.readers import Planned

DIFFERENCES = frozenset({"diff", "diff_b"})
"""Parts that lie beside one another for layers that do: whole differences of weights and biases."""


@dataclass(frozen=True, slots=True)
class FusedLayer:
    """One layer of a format. theirs: its path. ours: the layers that it stands for, from its first output to its last.

    shares: their outputs, relative to one another. swapped: whether the halves of its outputs change places.
    """

    theirs: str
    ours: tuple[str, ...]
    shares: tuple[int, ...] = (1,)
    swapped: bool = False


@dataclass(frozen=True, slots=True)
class LayerTable:
    """Every layer of a format. groups: lists of blocks by the format's name: ours, and the layers of one block, with
    paths that begin inside of the block. whole: layers outside of blocks."""

    groups: Mapping[str, tuple[str, tuple[FusedLayer, ...]]]
    whole: tuple[FusedLayer, ...] = ()

    def layers(self, names: Iterable[str]) -> tuple[FusedLayer, ...]:
        """Of a denoiser with as many blocks as these paths tell of, ours or theirs, dots or underscores."""
        names = tuple(names)
        found = []
        for theirs, (ours, inside) in self.groups.items():
            numbers = re.compile(rf"(?<![a-z_]){ours}[._](\d+)|{theirs}[._](\d+)")
            matches = [match for name in names for match in numbers.finditer(name)]
            count = 1 + max((int(match[1] or match[2]) for match in matches), default=-1)
            for number in range(count):
                for one in inside:
                    paths = tuple(f"{ours}.{number}.{path}" for path in one.ours)
                    found.append(FusedLayer(f"{theirs}.{number}.{one.theirs}", paths, one.shares, one.swapped))
        return (*found, *self.whole)

    def reached(self, targets: Sequence[str]) -> tuple[FusedLayer, ...]:
        """The layers of blocks up to the highest number that a target names; of the first where none names one."""
        highest = max((int(number) for target in targets for number in re.findall(r"\d+", target)), default=0)
        return self.layers([f"{ours}.{highest}" for ours, _ in self.groups.values()])


def fused_format(inner: Callable[[Iterable[str]], AdapterFormat], table: LayerTable) -> AdapterFormat:
    """A format that names other layers, some of which stand for several of ours.

    inner: what their updates are written as, given every path of theirs that may be there.
    """
    return _Fused(inner, table)


@dataclass(frozen=True, slots=True)
class _Fused(AdapterFormat):
    inner: Callable[[Iterable[str]], AdapterFormat]
    table: LayerTable

    def to_file(self, state: Mapping[str, Tensor], shape: LoraShape) -> tuple[dict[str, Tensor], dict[str, str]]:
        parts = by_layer(state)
        layers = self.table.layers(parts)
        updates = read_updates(state, shape)
        found, others, named = dict[str, Update](), dict[str, "Tensor"](), set[str]()
        for layer in layers:
            named.update(layer.ours)
            mine = [updates.get(path) for path in layer.ours]
            if any(mine):
                whole = mine[0] if len(mine) == 1 else None
                found[layer.theirs] = _swapped(whole or stack(mine, layer.shares), layer.swapped)
            rest = {path: _beside(parts[path], path in updates) for path in layer.ours if path in parts}
            if any(rest.values()):
                others |= {f"{layer.theirs}.{part}": one for part, one in _joined(layer, rest).items()}
        if strange := sorted(parts.keys() - named):
            raise StError(
                f"{len(strange)} layers have no name in this format, such as {strange[0]!r}",
                fix='leave them out of adapter.targets, or set adapter.format to "diffusers"',
            )
        theirs, theirs_shape = write_updates(found)
        return self.inner([layer.theirs for layer in layers]).to_file({**theirs, **others}, theirs_shape)

    def from_file(
        self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
    ) -> tuple[dict[str, Tensor], LoraShape]:
        table = {layer.theirs: layer for layer in self.table.layers(tensors)}
        state, shape = self.inner(list(table)).from_file(tensors, metadata)
        updates = read_updates(state, shape)
        found, others = dict[str, Update](), dict[str, "Tensor"]()
        for path, parts in by_layer(state).items():
            if path not in table:
                raise StError(f"{path!r} is no layer of this model", fix="name an adapter that was trained on it")
            layer = table[path]
            if path in updates:
                one: Sequence[Update | None] = [_swapped(updates[path], layer.swapped)]
                one = one if len(layer.ours) == 1 else unstack(updates[path], layer.shares)
                found |= {ours: part for ours, part in zip(layer.ours, one, strict=True) if part is not None}
            others |= _parted(layer, _beside(parts, path in updates))
        ours, our_shape = write_updates(found)
        return {**ours, **others}, our_shape

    def refusals(self, planned: Sequence[Planned]) -> Sequence[str]:
        found = []
        for one in planned:
            for layer in self.table.reached(one.targets):
                hit = [path for path in layer.ours if any(is_named(path, target) for target in one.targets)]
                if not hit or len(layer.ours) == 1:
                    continue
                inside = ", ".join(path.rpartition(".")[2] for path in layer.ours)
                place = f"its layer {layer.theirs.rpartition('.')[2]} stands for {inside}"
                if _is_low_rank(one) and "dora" in one.extras and len(hit) < len(layer.ours):
                    left = ", ".join(path for path in layer.ours if path not in hit)
                    found.append(f"{place}, and dora is planned for some of them only; {left} is not")
                elif not _is_low_rank(one) and one.kind != "full":
                    found.append(f"{place}, and {one.called} of several layers cannot be one update")
        return found[:1]

    def caveats(self, planned: Sequence[Planned]) -> Sequence[str]:
        return self.inner(()).caveats(planned)


def _beside(parts: Mapping[str, Tensor], is_low_rank: bool) -> dict[str, Tensor]:
    """What is not a low-rank update: all of another kind, or differences beside one."""
    return {part: tensor for part, tensor in parts.items() if not is_low_rank or part in DIFFERENCES}


def _joined(layer: FusedLayer, parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The parts of one layer from those of the layers that it stands for. Raises StError for what cannot be one."""
    import torch

    names = {name for mine in parts.values() for name in mine}
    if len(layer.ours) == 1 and not layer.swapped:
        return dict(parts[layer.ours[0]])
    _refuse_whole(layer, names)
    found = {}
    for name in sorted(names):
        units = [
            (len(parts[path][name]) // share, parts[path][name])
            for path, share in zip(layer.ours, layer.shares, strict=True)
            if name in parts.get(path, {})
        ]
        unit, like = units[0]
        every = [
            parts.get(path, {}).get(name, like.new_zeros(unit * share, *like.shape[1:]))
            for path, share in zip(layer.ours, layer.shares, strict=True)
        ]
        found[name] = _exchanged(torch.cat(every)) if layer.swapped else torch.cat(every)
    return found


def _parted(layer: FusedLayer, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of ``_joined``, by our names; what is zero throughout is left out."""
    import torch

    if len(layer.ours) == 1 and not layer.swapped:
        return {f"{layer.ours[0]}.{name}": tensor for name, tensor in parts.items()}
    _refuse_whole(layer, parts)
    found = {}
    for name, tensor in parts.items():
        whole = _exchanged(tensor) if layer.swapped else tensor
        unit = len(whole) // sum(layer.shares)
        for path, part in zip(layer.ours, torch.split(whole, [unit * share for share in layer.shares]), strict=True):
            if part.any():
                found[f"{path}.{name}"] = part.clone()
    return found


def _refuse_whole(layer: FusedLayer, names: Iterable[str]) -> None:
    if odd := sorted(set(names) - DIFFERENCES):
        inside = ", ".join(layer.ours)
        raise StError(
            f"{odd[0]!r} of {layer.theirs!r} cannot be taken apart or put together",
            why=f"that layer stands for {inside}" if len(layer.ours) > 1 else "the halves of that layer change places",
            fix="name another format",
        )


def _is_low_rank(one: Planned) -> bool:
    return one.kind in {"lora", "locon", "dylora"} and "tucker" not in one.extras


def _swapped(one: Update, swapped: bool) -> Update:
    """With the halves of its outputs exchanged, where they are in another order."""
    if not swapped:
        return one
    magnitude = None if one.magnitude is None else _exchanged(one.magnitude)
    return replace(one, up=_exchanged(one.up), magnitude=magnitude)


def _exchanged(outputs: Tensor) -> Tensor:
    return outputs.roll(len(outputs) // 2, 0)
