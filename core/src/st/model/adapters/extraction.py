"""Extraction: what was learnt between two checkpoints of one model, as an adapter of low rank."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from st.errors import StError
from st.model.adapters.targets import is_named
from st.model.checkpoint.checkpoint_folder import read_json
from st.model.files.formats import DOWN, UP, LoraShape
from st.spelling import listed

if TYPE_CHECKING:
    from torch import Tensor

WEIGHT = ".weight"


@dataclass(frozen=True, slots=True)
class Layer:
    """What became of one layer. error: the norm of what the update leaves out over that of the whole change."""

    path: str
    rank: int
    error: float


@dataclass(frozen=True, slots=True)
class Extracted:
    """An adapter, what became of each layer, and how many weights changed that no targeted layer has."""

    state: Mapping[str, Tensor]
    shape: LoraShape
    layers: Sequence[Layer]
    unchanged: int
    outside: Sequence[str]


class WeightFiles:
    """The weights of one network in a folder of diffusers' layout, read one tensor at a time. Use it in a ``with``.

    Raises StError for a folder without weights in safetensors.
    """

    def __init__(self, folder: Path, variant: str = "") -> None:
        self.folder = folder
        self.kind = str(read_json(folder / "config.json").get("_class_name", "a network"))
        self._files, self._stack = _weight_map(folder, variant), ExitStack()
        self._open: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.clear()
        self._stack.close()

    @property
    def names(self) -> list[str]:
        """Every tensor's name."""
        return list(self._files)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one tensor, without reading it."""
        return tuple(self._file(name).get_slice(name).get_shape())

    def tensor(self, name: str) -> Tensor:
        """One tensor, on the CPU."""
        found: Tensor = self._file(name).get_tensor(name)
        return found

    def _file(self, name: str) -> Any:
        from safetensors import SafetensorError, safe_open

        file = self._files[name]
        if file not in self._open:
            try:
                self._open[file] = self._stack.enter_context(safe_open(self.folder / file, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise _damaged(self.folder / file, error) from error
        return self._open[file]


def denoiser_folder(checkpoint: Path, component: str) -> Path:
    """Where a checkpoint's denoiser is: in a whole pipeline's folder, or the folder itself. Raises StError."""
    whole = checkpoint / "model_index.json"
    folder = checkpoint / component if whole.is_file() else checkpoint
    if not (folder / "config.json").is_file():
        raise StError(
            f"{str(checkpoint)!r} holds no {component} of diffusers' layout",
            why=f"there is no {str(folder / 'config.json')!r}",
            fix="name a folder with model_index.json, or one with the denoiser's config.json and weights",
        )
    return folder


def extract(
    base: WeightFiles,
    trained: WeightFiles,
    targets: Sequence[str],
    *,
    rank: int | None,
    energy: float,
    done: Callable[[int, int], None],
) -> Extracted:
    """The closest adapter to ``trained - base``, layer by layer: two matrices of a model are in memory at a time.

    rank: of each layer, at most; None for no limit. energy: each layer's rank is the smallest that keeps this share, in
    (0, 1], of its squared norm. done: told (layers so far, of all). Raises StError where the two are not of one
    architecture, a target names no layer, or nothing differs.
    """
    _refuse_others(base, trained)
    paths = _layers(base, targets)
    state: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    layers: list[Layer] = []
    for number, path in enumerate(paths):
        done(number, len(paths))
        change = _change(base, trained, f"{path}{WEIGHT}")
        if not change.any():
            continue
        down, up, error = _factored(change, rank, energy)
        state[f"{path}.{DOWN}"], state[f"{path}.{UP}"] = down, up
        ranks[path] = len(down)
        layers.append(Layer(path, len(down), error))
    if not layers:
        raise StError(
            "no layer that an adapter changes differs between the two checkpoints",
            why=f"{len(paths)} layers are the same",
            fix="name the base and what was trained from it, or other layers with --targets",
        )
    outside = [one for one in _others(base, paths) if _change(base, trained, one).any()]
    shape = LoraShape(ranks, {path: float(one) for path, one in ranks.items()})
    return Extracted(state, shape, layers, len(paths) - len(layers), outside)


def _factored(change: Tensor, limit: int | None, energy: float) -> tuple[Tensor, Tensor, float]:
    """(down, up, error) in float32. change: (out, in) or (out, in, *kernel).

    The best approximation of a rank projects onto the first eigenvectors of M M^T (Eckart and Young 1936). That matrix
    is as small as the smaller side of M, so this is several times faster than a whole singular value decomposition.
    """
    import torch

    matrix = change.double().flatten(1)
    tall = matrix.shape[0] > matrix.shape[1]
    flat = matrix.T if tall else matrix
    values, vectors = torch.linalg.eigh(flat @ flat.T)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    shares = values.cumsum(0) / values.sum()
    needed = int((shares < energy).sum()) + 1 if energy < 1 else int((values > values[0] * 1e-12).sum())
    rank = min(needed, len(values), limit or len(values))
    basis = vectors[:, :rank]
    projected = basis.T @ flat
    # Both factors get the root of each singular value, so that neither overflows in half precision.
    root = values[:rank].sqrt().clamp(min=1e-30).sqrt()[:, None]
    left, right = basis * root.T, projected / root
    up, down = (right.T, left.T) if tall else (left, right)
    left_out = torch.linalg.norm(matrix - up @ down) / torch.linalg.norm(matrix)
    kernel = change.shape[2:]
    return (
        down.float().reshape(rank, change.shape[1], *kernel).contiguous(),
        up.float().reshape(change.shape[0], rank, *(1 for _ in kernel)).contiguous(),
        float(left_out),
    )


def _change(base: WeightFiles, trained: WeightFiles, name: str) -> Tensor:
    return trained.tensor(name).float() - base.tensor(name).float()


def _refuse_others(base: WeightFiles, trained: WeightFiles) -> None:
    if base.kind != trained.kind:
        raise StError(
            f"{str(base.folder)!r} is a {base.kind} and {str(trained.folder)!r} a {trained.kind}",
            fix="name two checkpoints of one model",
        )
    lacking = sorted(set(base.names) ^ set(trained.names))
    if lacking:
        owner = base if lacking[0] in base.names else trained
        raise StError(
            f"{len(lacking)} weights are in one checkpoint only, such as {lacking[0]!r} in {str(owner.folder)!r}",
            fix="name two checkpoints of one model",
        )
    for name in base.names:
        if base.shape(name) != trained.shape(name):
            raise StError(
                f"{name!r} has shape {trained.shape(name)} in {str(trained.folder)!r}, {base.shape(name)} in the base",
                fix="name two checkpoints of one model",
            )


def _layers(base: WeightFiles, targets: Sequence[str]) -> list[str]:
    matrices = [
        name.removesuffix(WEIGHT) for name in base.names if name.endswith(WEIGHT) and len(base.shape(name)) >= 2
    ]
    for pattern in targets:
        if not any(is_named(path, pattern) for path in matrices):
            raise StError(f"target {pattern!r} names no layer of {base.kind}", why=f"it has {listed(matrices[:3])}")
    return [path for path in matrices if any(is_named(path, one) for one in targets)]


def _others(base: WeightFiles, paths: Sequence[str]) -> Iterator[str]:
    inside = {f"{path}{WEIGHT}" for path in paths}
    return (name for name in base.names if name not in inside)


def _weight_map(folder: Path, variant: str) -> dict[str, str]:
    """The file of each tensor, by name."""
    from safetensors import SafetensorError, safe_open

    middle = f".{variant}" if variant else ""
    index = folder / f"diffusion_pytorch_model.safetensors.index{middle}.json"
    if index.is_file():
        return dict(read_json(index)["weight_map"])
    single = folder / f"diffusion_pytorch_model{middle}.safetensors"
    if not single.is_file():
        raise StError(f"{str(folder)!r} has no {single.name!r}", fix="name a folder of weights in safetensors")
    try:
        with safe_open(single, framework="pt") as file:
            return dict.fromkeys(file.keys(), single.name)
    except (SafetensorError, OSError) as error:
        raise _damaged(single, error) from error


def _damaged(file: Path, error: Exception) -> StError:
    return StError(f"{str(file)!r} is not a whole safetensors file: {error}")
