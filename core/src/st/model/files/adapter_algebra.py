"""Adapter algebra: low-rank adapter files read, added, made smaller and compared without knowing their model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from st.errors import StError
from st.model.files.adapter_file import read_adapter_file, write_adapter_file
from st.model.files.formats import DOWN, PARTS, UP, LoraShape, UnknownTensors, split_file_key
from st.model.files.own_updates import Difference, LowRank
from st.model.files.peft_layout import METADATA, diffusers_format, header_alphas, joined_headers
from st.model.files.update_kinds import kind_of

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from st.model.files.update_kinds import UpdateKind

ENDINGS: Mapping[str, tuple[str, str]] = {
    "kohya": ("lora_down.weight", "lora_up.weight"),
    "peft": (DOWN, UP),
    "old diffusers": ("lora.down.weight", "lora.up.weight"),
}
"""How the names of a layer's two matrices end, by the kind of file."""


@dataclass(frozen=True, slots=True)
class Update:
    """alpha / rank * up @ down. down: (rank, in, ...). up: (out, rank, ...), with a kernel of 1 for convolutions."""

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return len(self.down)

    def factors(self) -> tuple[Tensor, Tensor]:
        """(up, down) as matrices in float32; their product is the whole update."""
        return self.up.float().flatten(1) * (self.alpha / self.rank), self.down.float().flatten(1)


@dataclass(frozen=True, slots=True)
class Other:
    """An update of another kind. tensors: by their names in the file. how: what they make of the weight."""

    kind: str
    tensors: Mapping[str, Tensor]
    how: UpdateKind


_BESIDE_LORA = frozenset({*PARTS, "alpha", "diff_b"})
BUILT_IN: Mapping[str, UpdateKind] = MappingProxyType({"lora": LowRank(), "full": Difference()})


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """What a file holds, by its own names of layers. kind: of ``ENDINGS``; '' for one without LoRA. alphas_inside:
    alpha is a tensor each. others: updates that are not plain LoRA. biases: differences of biases.
    """

    path: Path
    kind: str
    alphas_inside: bool
    updates: Mapping[str, Update]
    metadata: Mapping[str, str]
    others: Mapping[str, Other]
    biases: Mapping[str, Tensor]

    def plain(self) -> AdapterFile:
        """Itself. Raises StError where it holds more than LoRA."""
        if self.others or self.biases:
            stem, one = next(iter(self.others.items()), (next(iter(self.biases), ""), None))
            what = one.kind if one else "a difference of a bias"
            raise StError(f"{str(self.path)!r} is not plain LoRA", why=f"{stem!r} is {what}")
        return self


def open_adapter(path: Path, kinds: Mapping[str, UpdateKind] = BUILT_IN) -> AdapterFile:
    """Read an adapter file. kinds: of updates that may be in it. Raises StError naming a tensor that is of none."""
    tensors, metadata = read_adapter_file(path)
    endings = [kind for kind, ends in ENDINGS.items() if any(key.endswith(f".{ends[0]}") for key in tensors)]
    layers: dict[str, dict[str, Tensor]] = {}
    strange = []
    for key, tensor in tensors.items():
        stem, part = split_file_key(key, tensors)
        if part:
            layers.setdefault(stem, {})[part] = tensor
        else:
            strange.append(key)
    named = {stem: kind_of(parts, kinds) for stem, parts in layers.items()}
    strange += [f"{stem}.{part}" for stem, kind in named.items() if not kind for part in layers[stem]]
    odd = (
        (stem, part) for stem, kind in named.items() if kind == "lora" for part in layers[stem].keys() - _BESIDE_LORA
    )
    strange += [f"{stem}.{part}" for stem, part in odd]
    if strange:
        some = f"{str(path)!r} is no adapter file" if len(strange) == len(tensors) else ""
        unknown = UnknownTensors(strange, len(tensors), why="they are of no kind of update that is known here")
        fix = "name the plugin that knows them: --plugins NAME"
        raise StError(some or unknown.what, why=unknown.what if some else unknown.why, fix=fix)
    inside = any(key.endswith(".alpha") for key in tensors)
    plain, others, biases = dict[str, Update](), dict[str, Other](), dict[str, "Tensor"]()
    low = {stem: parts for stem, parts in layers.items() if parts.keys() - {"alpha", "diff_b"} == {DOWN, UP}}
    alphas = {} if inside else _header_alphas({stem: len(parts[DOWN]) for stem, parts in low.items()}, metadata)
    for stem, parts in layers.items():
        if "diff_b" in parts:
            biases[stem] = parts.pop("diff_b")
        if stem in low:
            plain[stem] = _update(stem, parts, alphas.get(stem), ENDINGS[endings[0]][1])
        elif parts:
            if missing := {DOWN, UP} - parts.keys() if parts.keys() & {DOWN, UP} else set():
                raise StError(f"{stem!r} has no {missing.pop()}", why="an update is a product of two")
            others[stem] = Other(named[stem], parts, kinds[named[stem]])
    return AdapterFile(path, endings[0] if endings else "", inside, plain, metadata, others, biases)


def write_adapter(
    like: AdapterFile, path: Path, updates: Mapping[str, Update], beside: Mapping[str, Tensor] = MappingProxyType({})
) -> None:
    """Write updates with the names and the precision of another file. Its history stays behind.

    beside: tensors that are written as they are.
    """
    import torch

    down, up = ENDINGS[like.kind or "kohya"]
    tensors: dict[str, Tensor] = dict(beside)
    header = {"format": "pt"}
    if like.alphas_inside or like.kind != "peft":
        for stem, one in updates.items():
            tensors[f"{stem}.{down}"], tensors[f"{stem}.{up}"] = one.down, one.up
            tensors[f"{stem}.alpha"] = torch.tensor(one.alpha)
        write_adapter_file(path, tensors, header)
        return
    for component in dict.fromkeys(stem.split(".")[0] for stem in updates):
        begin = f"{component}."
        mine = {stem.removeprefix(begin): one for stem, one in updates.items() if stem.startswith(begin)}
        state = {f"{path}.{DOWN}": one.down for path, one in mine.items()}
        state |= {f"{path}.{UP}": one.up for path, one in mine.items()}
        shape = LoraShape(
            {path: one.rank for path, one in mine.items()}, {path: one.alpha for path, one in mine.items()}
        )
        found, further = diffusers_format(component).to_file(state, shape)
        tensors |= found
        header = joined_headers(header, further)
    write_adapter_file(path, tensors, header)


def merge_whole(files: Sequence[AdapterFile], weights: Sequence[float]) -> dict[str, Tensor]:
    """The sums that are not of low rank, as whole differences by their names in a file; of biases too.

    Raises StError where an update's change depends on a weight that is not in the file, or shapes differ.
    """
    found: dict[str, Tensor] = {}
    for stem in dict.fromkeys(stem for file in files for stem in file.others):
        for file, weight in zip(files, weights, strict=True):
            if stem in file.others or stem in file.updates:
                _add(found, f"{stem}.diff", weight * _whole(file, stem), file)
    for file, weight in zip(files, weights, strict=True):
        for stem, bias in file.biases.items():
            _add(found, f"{stem}.diff_b", weight * bias.float(), file)
    return found


def _add(found: dict[str, Tensor], name: str, change: Tensor, file: AdapterFile) -> None:
    before = found.get(name)
    if before is not None and before.shape != change.shape:
        raise StError(f"{name!r} is {tuple(change.shape)} in {str(file.path)!r}, {tuple(before.shape)} before it")
    found[name] = change if before is None else before + change


def _whole(file: AdapterFile, stem: str) -> Tensor:
    if stem in file.updates:
        one = file.updates[stem]
        up, down = one.factors()
        return (up @ down).reshape(len(one.up), *one.down.shape[1:])
    other = file.others[stem]
    try:
        return other.how.change(other.tensors)
    except StError as error:
        raise StError(f"{stem!r} of {str(file.path)!r} is {other.kind}: {error.what}", why=error.why) from error


def _update(stem: str, parts: Mapping[str, Tensor], alpha: float | None, end: str) -> Update:
    first, second = parts[DOWN], parts[UP]
    if second.shape[1] != len(first):
        raise StError(f"'{stem}.{end}' has shape {tuple(second.shape)}, expected (outputs, {len(first)})")
    given = float(parts["alpha"]) if "alpha" in parts else alpha
    return Update(first, second, float(len(first)) if given is None else given)


def merge(files: Sequence[AdapterFile], weights: Sequence[float]) -> dict[str, Update]:
    """The sum of weight * update, exactly: ranks add up; of layers that are LoRA in every file that has them.

    Raises StError where the files are not of one model.
    """
    import torch

    first = files[0]
    for other in files[1:]:
        _refuse_other_names(first, other)
    found: dict[str, Update] = {}
    others = {stem for file in files for stem in file.others}
    for stem in dict.fromkeys(stem for file in files for stem in file.updates if stem not in others):
        named = [(file, weight) for file, weight in zip(files, weights, strict=True) if stem in file.updates]
        parts = [(file.updates[stem], weight) for file, weight in named]
        for file, _ in named[1:]:
            _refuse_other_shape(stem, named[0][0], file)
        down = torch.cat([one.down.float() for one, _ in parts])
        up = torch.cat([one.up.float() * (weight * one.alpha / one.rank) for one, weight in parts], dim=1)
        dtype = parts[0][0].down.dtype
        found[stem] = Update(down.to(dtype), up.to(dtype), float(len(down)))
    return found


def resize(one: Update, rank: int) -> tuple[Update, float]:
    """The closest update of at most this rank, and how much of the norm it keeps, in [0, 1].

    The singular vectors of the product come from those of a (rank, rank) matrix: Eckart and Young 1936. The scale
    alpha / rank stays as it is.
    """
    import torch

    if one.rank <= rank:
        return one, 1.0
    scale = one.alpha / one.rank
    outer, inner = torch.linalg.qr(one.up.double().flatten(1))
    rows, columns = torch.linalg.qr(one.down.double().flatten(1).T)
    left, values, right = torch.linalg.svd(inner @ columns.T)
    root = values[:rank].sqrt()
    up = (outer @ left[:, :rank]) * root
    down = root[:, None] * (right[:rank] @ rows.T)
    kept = float((values[:rank].square().sum() / values.square().sum()).sqrt()) if values.any() else 1.0
    down, up = down.to(one.down.dtype), up.to(one.up.dtype)
    count = len(down)
    resized = Update(
        down.reshape(count, *one.down.shape[1:]), up.reshape(len(up), count, *one.up.shape[2:]), scale * count
    )
    return resized, kept


def distance(one: Update, other: Update) -> float:
    """Norm of the difference over the norm of the larger update; 0 where both say the same."""
    import torch

    (up, down), (other_up, other_down) = one.factors(), other.factors()
    apart = _norm(torch.cat([up, -other_up], dim=1), torch.cat([down, other_down]))
    size = max(_norm(up, down), _norm(other_up, other_down))
    return apart / size if size else 0.0


def norm(one: Update) -> float:
    """Frobenius norm of the whole update."""
    return _norm(*one.factors())


def strength(other: Other) -> float | None:
    """Frobenius norm of the whole update; None where it depends on a weight that is not in the file."""
    import torch

    try:
        return float(torch.linalg.vector_norm(other.how.change(other.tensors)))
    except StError:
        return None


def comparable(one: AdapterFile, other: AdapterFile) -> list[str]:
    """Layers that both have, with the same shape. Raises StError where the files are not of one model."""
    _refuse_other_names(one, other)
    both = [stem for stem in one.updates if stem in other.updates]
    for stem in both:
        _refuse_other_shape(stem, one, other)
    return both


def _norm(up: Tensor, down: Tensor) -> float:
    """Of the product, without forming it."""
    import torch

    return float(torch.linalg.norm(torch.linalg.qr(up.double())[1] @ torch.linalg.qr(down.double().T)[1].T))


def _refuse_other_names(one: AdapterFile, other: AdapterFile) -> None:
    mine, theirs = ({**file.updates, **file.others, **file.biases} for file in (one, other))
    if not mine.keys() & theirs.keys():
        names = [next(iter(named)) for named in (mine, theirs)]
        raise StError(
            f"{str(one.path)!r} and {str(other.path)!r} have no layer in common",
            why=f"they have names such as {names[0]!r} and {names[1]!r}",
            fix="give both one layout with `st adapter convert`",
        )


def _refuse_other_shape(stem: str, one: AdapterFile, other: AdapterFile) -> None:
    mine, theirs = one.updates[stem], other.updates[stem]
    sizes = ((mine.down.shape[1:], theirs.down.shape[1:]), (mine.up.shape[:1], theirs.up.shape[:1]))
    for end, (expected, found) in zip(ENDINGS[one.kind], sizes, strict=True):
        if expected != found:
            raise StError(
                f"'{stem}.{end}' is {tuple(found)} beside its rank in {str(other.path)!r}, expected {tuple(expected)}",
                why=f"as in {str(one.path)!r}",
                fix="name adapters of one model",
            )


def _header_alphas(ranks: Mapping[str, int], metadata: Mapping[str, str]) -> dict[str, float]:
    """What diffusers wrote of each component; nothing where it wrote nothing."""
    alphas: dict[str, float] = {}
    if METADATA not in metadata:
        return alphas
    for component in dict.fromkeys(stem.split(".")[0] for stem in ranks):
        begin = f"{component}."
        mine = {stem.removeprefix(begin): rank for stem, rank in ranks.items() if stem.startswith(begin)}
        found = header_alphas(metadata[METADATA], component, mine)
        alphas |= {f"{begin}{path}": alpha for path, alpha in found.items()}
    return alphas
