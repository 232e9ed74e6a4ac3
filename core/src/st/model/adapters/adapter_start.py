"""Start: an adapter file that training goes on from, in whatever layout the family reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from st.errors import Problem, StError
from st.model.adapters.targets import is_named
from st.model.files.adapter_file import PICKLES, read_adapter_file
from st.model.files.formats import DOWN, UP, LoraShape, read_layout, recognise

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor, nn

    from st.model.files.formats import AdapterFormat

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


def read_start(
    start: str, denoiser: nn.Module, formats: Iterable[AdapterFormat]
) -> tuple[dict[str, Tensor], LoraShape]:
    """The adapter of a file, by our names. formats: the family's; those that need no family are tried after them.

    Raises StError for a pickle, a layout that nobody knows, layers that the denoiser does not have, and tensors of
    another shape.
    """
    tensors, metadata = read_adapter_file(Path(start).expanduser())
    modules = dict(denoiser.named_modules())
    try:
        state, shape = read_layout(tensors, metadata, [*formats, recognise(tensors, list(modules))])
    except StError as error:
        raise StError(f"adapter.start = {start!r}: {error.what}", why=error.why, fix=error.fix or _FIX) from error
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
    return state, shape


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
