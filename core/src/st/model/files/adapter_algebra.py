"""Adapter algebra: low-rank adapter files read, added, made smaller and compared without knowing their model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from st.errors import StError
from st.model.files.adapter_file import read_adapter_file, write_adapter_file
from st.model.files.formats import DOWN, METADATA, UP, UnknownTensors, diffusers_format, header_alphas, shape_of

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

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
class AdapterFile:
    """What a file holds, by its own names of layers. kind: of ``ENDINGS``. alphas_inside: alpha is a tensor each."""

    path: Path
    kind: str
    alphas_inside: bool
    updates: Mapping[str, Update]
    metadata: Mapping[str, str]


def open_adapter(path: Path) -> AdapterFile:
    """Read a file of LoRA. Raises StError naming a tensor that is none, such as one of DoRA or of another method."""
    tensors, metadata = read_adapter_file(path)
    kinds = [kind for kind, ends in ENDINGS.items() if any(key.endswith(f".{ends[0]}") for key in tensors)]
    if not kinds:
        some = next(iter(tensors), "")
        raise StError(
            f"{str(path)!r} is no file of LoRA", why=f"it has names such as {some!r}" if some else "it is empty"
        )
    down, up = ENDINGS[kinds[0]]
    stems = [key.removesuffix(f".{down}") for key in tensors if key.endswith(f".{down}")]
    known = {f"{stem}.{end}" for stem in stems for end in (down, up, "alpha")}
    unknown = sorted(tensors.keys() - known)
    missing = [stem for stem in stems if f"{stem}.{up}" not in tensors]
    if unknown or missing:
        why = f"{missing[0]!r} has one of two matrices" if missing else "only plain LoRA can be worked on"
        raise UnknownTensors(unknown or missing, len(tensors), why=why)
    inside = {stem: float(tensors[f"{stem}.alpha"]) for stem in stems if f"{stem}.alpha" in tensors}
    alphas = inside or _header_alphas({stem: len(tensors[f"{stem}.{down}"]) for stem in stems}, metadata)
    updates = {}
    for stem in stems:
        first, second = tensors[f"{stem}.{down}"], tensors[f"{stem}.{up}"]
        if second.shape[1] != len(first):
            raise StError(f"'{stem}.{up}' has shape {tuple(second.shape)}, expected (outputs, {len(first)})")
        updates[stem] = Update(first, second, alphas.get(stem, float(len(first))))
    return AdapterFile(path, kinds[0], bool(inside), updates, metadata)


def write_adapter(like: AdapterFile, path: Path, updates: Mapping[str, Update]) -> None:
    """Write updates with the names and the precision of another file. Its history stays behind."""
    import torch

    down, up = ENDINGS[like.kind]
    tensors: dict[str, Tensor] = {}
    for stem, one in updates.items():
        tensors[f"{stem}.{down}"], tensors[f"{stem}.{up}"] = one.down, one.up
        if like.alphas_inside or like.kind == "kohya":
            tensors[f"{stem}.alpha"] = torch.tensor(one.alpha)
    header = {"format": "pt"}
    if not (like.alphas_inside or like.kind == "kohya"):
        header[METADATA] = _header(updates)
    write_adapter_file(path, tensors, header)


def merge(files: Sequence[AdapterFile], weights: Sequence[float]) -> dict[str, Update]:
    """The sum of weight * update, exactly: ranks add up. Raises StError where the files are not of one model."""
    import torch

    first = files[0]
    for other in files[1:]:
        _refuse_other_names(first, other)
    found: dict[str, Update] = {}
    for stem in dict.fromkeys(stem for file in files for stem in file.updates):
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
    if not one.updates.keys() & other.updates.keys():
        names = [next(iter(file.updates)) for file in (one, other)]
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


def _header(updates: Mapping[str, Update]) -> str:
    config: dict[str, object] = {}
    for component in dict.fromkeys(stem.split(".")[0] for stem in updates):
        begin = f"{component}."
        mine = {stem.removeprefix(begin): one for stem, one in updates.items() if stem.startswith(begin)}
        state = {f"{path}.{DOWN}": one.down for path, one in mine.items()}
        shape = shape_of(state, {path: one.alpha for path, one in mine.items()})
        config |= json.loads(diffusers_format(component).to_file(state, shape)[1][METADATA])
    return json.dumps(config, indent=2, sort_keys=True)
