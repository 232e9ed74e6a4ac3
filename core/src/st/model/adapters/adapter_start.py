"""Start: an adapter file that training goes on from, in whatever layout the family reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from st.errors import Problem, StError
from st.model.adapters.targets import is_named
from st.model.files.adapter_file import PICKLES, read_adapter_file
from st.model.files.formats import DOWN, PARTS, UP, LoraShape, UnknownTensors, by_layer, read_layout, recognise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import Tensor, nn

    from st.model.files.formats import AdapterFormat

_DROPPED = (".diff", ".diff_b", ".w_norm", ".b_norm", ".lora_B.bias")
"""Ends the names of whole differences, which lie beside low-rank updates in files of some programs."""
_FIX = "name an adapter that was trained on this model"


def start_problems(start: str) -> Sequence[Problem]:
    """What can be seen of ``adapter.start`` without opening it."""
    path, setting = Path(start).expanduser(), f"adapter.start = {start!r}"
    if start and path.suffix in PICKLES:
        what = f"{setting} is a pickle, which can run any program when it is opened"
        return (Problem("adapter.start", what, fix="convert it to .safetensors with the program that wrote it"),)
    if start and not path.is_file():
        return (Problem("adapter.start", f"{setting}: there is no such file"),)
    return ()


def read_known(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    formats: Iterable[AdapterFormat],
    modules: Callable[[], Sequence[str]],
) -> tuple[dict[str, Tensor], LoraShape]:
    """What a file holds, by our names: in one of the family's formats, or in one that goes by the paths in its
    denoiser, as peft, OneTrainer and other programs write it. modules: every such path, asked where it is needed.
    """
    given = tuple(formats)
    refused: StError | None = None
    try:
        return read_layout(tensors, metadata, given) if given else _by_paths(tensors, metadata, modules(), ())
    except StError as error:
        if not given:
            raise
        refused = error
    return _by_paths(tensors, metadata, modules(), (refused,))


def _by_paths(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    paths: Sequence[str],
    refusals: Sequence[StError],
) -> tuple[dict[str, Tensor], LoraShape]:
    """Raises the refusal that came closest."""
    try:
        state, shape = recognise(tensors, paths).from_file(tensors, metadata)
    except StError as error:
        shares = {one: one.share if isinstance(one, UnknownTensors) else 0.0 for one in (*refusals, error)}
        raise min(shares, key=shares.__getitem__) from error
    if refusals and by_layer(state).keys() - set(paths):
        raise refusals[0]
    return state, shape


def read_start(
    start: str, denoiser: nn.Module, formats: Iterable[AdapterFormat]
) -> tuple[dict[str, Tensor], LoraShape, list[str]]:
    """The low-rank adapter of a file, by our names, and what else is in it, which low-rank updates cannot go on from.

    formats: the family's; those that need no family are tried after them. Raises StError for a pickle, a layout that
    nobody knows, layers that the denoiser does not have, tensors of another shape, and other kinds of adapters.
    """
    tensors, metadata = read_adapter_file(Path(start).expanduser())
    modules = dict(denoiser.named_modules())
    try:
        found, shape = read_known(tensors, metadata, formats, lambda: list(modules))
    except StError as error:
        raise StError(f"adapter.start = {start!r}: {error.what}", why=error.why, fix=error.fix or _FIX) from error
    state = {key: tensor for key, tensor in found.items() if key.endswith(tuple(f".{part}" for part in PARTS))}
    dropped = sorted(found.keys() - state.keys())
    if odd := [key for key in dropped if not key.endswith(_DROPPED)]:
        raise StError(
            f"adapter.start = {start!r} is no LoRA: it holds {odd[0]!r}",
            fix="set adapter.kind to what trains such updates",
        )
    foreign = [path for path in shape.ranks if path not in modules]
    if foreign or not state:
        some = ", ".join(map(repr, sorted(foreign)[:3]))
        raise StError(
            f"adapter.start = {start!r} fits no {type(denoiser).__name__}",
            why=f"{len(foreign)} of its {len(shape.ranks)} layers are not there, such as {some}"
            if foreign
            else "it holds no layer",
            fix=_FIX,
        )
    for path, rank in shape.ranks.items():
        _refuse_misshapen(start, path, _shapes(start, path, modules[path], rank), state)
    return state, shape, dropped


def untouched(denoiser: nn.Module, targets: Sequence[str], shape: LoraShape) -> int:
    """How many layers that the family would train have no update here."""
    paths = [path for path, module in denoiser.named_modules() if _is_layer(module)]
    return sum(path not in shape.ranks and any(is_named(path, one) for one in targets) for path in paths)


def _is_layer(module: Any) -> bool:
    return hasattr(module, "in_features") or hasattr(module, "kernel_size")


def _shapes(start: str, path: str, module: Any, rank: int) -> dict[str, tuple[int, ...]]:
    """Shapes that an update of this layer has; of quantized layers too, whose weights say nothing of it."""
    if hasattr(module, "in_features"):
        return {DOWN: (rank, module.in_features), UP: (module.out_features, rank)}
    if hasattr(module, "kernel_size"):
        ones = tuple(1 for _ in module.kernel_size)
        return {DOWN: (rank, module.in_channels, *module.kernel_size), UP: (module.out_channels, rank, *ones)}
    raise StError(
        f"adapter.start = {start!r} changes {path!r}, which is a {type(module).__name__} and no layer of weights",
        fix=_FIX,
    )


def _refuse_misshapen(
    start: str, path: str, expected: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor]
) -> None:
    for part, shape in expected.items():
        found = tuple(state[f"{path}.{part}"].shape)
        if found != shape:
            raise StError(
                f"adapter.start = {start!r}: '{path}.{part}' has shape {found}, expected {shape}",
                why="it was trained on a model of another size",
                fix=_FIX,
            )
