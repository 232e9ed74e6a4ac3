"""Adapter files on disk: one safetensors file, written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from st.errors import OutputUnwritable, Problem, StError
from st.model.files.formats import DOWN, UP, by_layer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import Tensor

    from st.model.files.formats import AdapterFormat, LoraShape
    from st.model.files.readers import Planned

FILE = "adapter.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def read_adapter_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors on the CPU, metadata of the header). Raises StError for a file that is missing, damaged or a pickle."""
    from safetensors import SafetensorError, safe_open

    if path.suffix in PICKLES:
        raise StError(
            f"{str(path)!r} is a pickle, which can run any program when it is opened",
            fix="convert it to .safetensors with the program that wrote it",
        )
    if not path.is_file():
        raise StError(f"there is no file {str(path)!r}")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise StError(f"{str(path)!r} is not a whole safetensors file: {error}") from error


def layout_problems(
    names: Iterable[str], formats: Mapping[str, AdapterFormat], planned: Sequence[Planned]
) -> list[Problem]:
    """What formats that were asked for cannot be or hold, as far as that is known without the model."""
    found = []
    for name in names:
        if name not in formats:
            what = f"adapter.format = {name!r}: this family writes {', '.join(formats)}"
            found.append(Problem("adapter.format", what, fix="set one of these, or leave it out"))
            continue
        for reason in formats[name].refusals(planned):
            what = f"adapter.format = {name!r} cannot hold this adapter"
            found.append(
                Problem("adapter.format", what, reason, "name other layers in adapter.targets, or other formats")
            )
    return found


def layout_caveats(names: Iterable[str], formats: Mapping[str, AdapterFormat], planned: Sequence[Planned]) -> list[str]:
    """What readers of these formats would not show of what is planned, a sentence each, naming the format."""
    known = [name for name in names if name in formats]
    return [f"adapter.format = {name!r}: {one}" for name in known for one in formats[name].caveats(planned)]


def try_layouts(
    names: Iterable[str], formats: Mapping[str, AdapterFormat], adapter: tuple[Mapping[str, Tensor], LoraShape]
) -> None:
    """Raises StError for the first of these formats that cannot hold an adapter; nothing is copied or written."""
    state, shape = adapter
    shadows = {name: tensor.detach().to("meta") for name, tensor in state.items()}
    for name in names:
        try:
            formats[name].to_file(shadows, shape)
        except StError as error:
            what = f"adapter.format = {name!r} cannot hold this adapter: {error.what}"
            raise StError(what, why=error.why, fix=error.fix) from error


def write_layouts(
    directory: Path,
    names: Sequence[str],
    formats: Mapping[str, AdapterFormat],
    adapter: tuple[Mapping[str, Tensor], LoraShape],
    metadata: Mapping[str, str],
) -> list[Path]:
    """Write an adapter once in each format: adapter.safetensors in the first, adapter-<format> in the others.

    A format that fails keeps none of the others from being written; its error is raised when they are.
    """
    failed: list[StError] = []
    written = []
    for name in names:
        path = directory / (FILE if name == names[0] else f"{Path(FILE).stem}-{name}.safetensors")
        try:
            write_layout(path, formats[name], adapter, metadata)
            written.append(path)
        except StError as error:
            failed.append(error)
    if failed:
        kept = f"; {', '.join(str(one) for one in written)} is written" if written else ""
        raise type(failed[0])(f"{failed[0].what}{kept}", why=failed[0].why, fix=failed[0].fix)
    return written


def write_layout(
    path: Path, layout: AdapterFormat, adapter: tuple[Mapping[str, Tensor], LoraShape], metadata: Mapping[str, str]
) -> None:
    """Write an adapter, open the file again and find every update in it, before it gets its name.

    Raises StError where the layout cannot hold it, OutputUnwritable.
    """
    state, shape = adapter
    tensors, header = layout.to_file(state, shape)

    def check(written: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        back, back_shape = layout.from_file(written, metadata)
        layers, there = by_layer(state), by_layer(back)
        strange = sorted(there.keys() - layers.keys())
        # What is zero throughout changes nothing, and layouts that join layers leave it out.
        gone = [
            path for path in sorted(layers.keys() - there.keys()) if any(one.any() for one in layers[path].values())
        ]
        known = [one for one in back_shape.ranks if one in shape.ranks]
        changed = [one for one in known if _differ(_answer(one, state, shape), _answer(one, back, back_shape))]
        if wrong := [*strange, *gone, *changed]:
            raise OutputUnwritable(
                f"{str(path)!r} would not hold the adapter: {wrong[0]!r} does not come back as it was",
                why=f"this is so for {len(wrong)} names; there are {len(shape.ranks)} layers",
                fix="set adapter.format to another layout",
            )

    write_adapter_file(path, tensors, {**metadata, **header}, check)


def write_adapter_file(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    check: Callable[[Mapping[str, Tensor], Mapping[str, str]], None] | None = None,
) -> None:
    """Write a file that a reader sees whole or not at all, and read it back. Raises OutputUnwritable.

    Where metadata tells of a training (``ss_``) or a model (``modelspec.``), the hashes that go with it are added.
    check: called with what was read back, before the file gets its name; what it raises leaves no file.
    """
    from safetensors import SafetensorError

    from st.model.files.tensor_file import Body

    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        body = Body.of(plain)
        told = {**metadata, **body.hashes(metadata)}
        with partial.open("wb") as file:
            file.write(body.header(told))
            file.write(body.data)
            file.flush()
            os.fsync(file.fileno())
        written, header = read_adapter_file(partial)
        same = written.keys() == plain.keys() and all(_equal(written[name], plain[name]) for name in plain)
        if not same or header != told:
            raise OutputUnwritable(
                f"{str(path)!r} does not hold what was written", why="the disk may be damaged or full"
            )
        if check is not None:
            check(written, header)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise _unwritable(path, error) from error
    finally:
        partial.unlink(missing_ok=True)


def _unwritable(path: Path, error: Exception) -> OutputUnwritable:
    return OutputUnwritable(f"{str(path)!r} cannot be written: {error}", fix="free some space, or set output")


def _answer(path: str, state: Mapping[str, Tensor], shape: LoraShape) -> tuple[Tensor, Tensor]:
    """What an update makes of one random input, (outputs,): the same update however it is factored and scaled; and how
    large the terms are that it is the sum of."""
    import torch

    down, up = (state[f"{path}.{part}"].float().cpu().flatten(1) for part in (DOWN, UP))
    probe = torch.randn(down.shape[1], generator=torch.Generator().manual_seed(0))
    scale, inner = shape.alphas[path] / shape.ranks[path], down @ probe
    return scale * (up @ inner), abs(scale) * (up.abs() @ inner.abs())


def _differ(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    """By more than half precision rounds; what is not a number is in both.

    Terms may cancel out: a layer that nobody asked is, with PiSSA, as much as it was less as much as it is.
    """
    (answer, terms), (again, _) = one, other
    if answer.shape != again.shape:
        return True
    return bool((answer - again).norm() > 0.02 * answer.norm() + 1e-5 * terms.norm())


def _equal(one: Tensor, other: Tensor) -> bool:
    """Byte by byte: a weight that is not a number is equal to itself here."""
    import torch

    same = one.shape == other.shape and one.dtype == other.dtype
    return same and torch.equal(one.flatten().view(torch.uint8), other.flatten().view(torch.uint8))
