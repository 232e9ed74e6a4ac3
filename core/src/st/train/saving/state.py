"""State as files: any nesting of plain values and tensors, as one JSON and one safetensors file; never a pickle."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from st.errors import CheckpointDamaged

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

_TENSOR, _ITEMS, _TUPLE = "$tensor", "$items", "$tuple"


def snapshot(state: Any, room: Any = None) -> Any:
    """The same state with every tensor copied to the CPU, so that training can go on while it is written.

    room: an earlier snapshot that nobody reads any more. Its tensors are written over where they fit: memory that is
    fresh from the system is cleared page by page as it is first touched, which takes longer than the copy.
    """
    if isinstance(state, torch.Tensor):
        if isinstance(room, torch.Tensor) and room.shape == state.shape and room.dtype == state.dtype:
            return room.copy_(state.detach())
        return state.detach().to("cpu", copy=True).contiguous()
    if isinstance(state, dict):
        by_key = room if isinstance(room, dict) else {}
        return {key: snapshot(value, by_key.get(key)) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        by_place = [*room] if isinstance(room, (list, tuple)) and len(room) == len(state) else [None] * len(state)
        return type(state)(snapshot(value, place) for value, place in zip(state, by_place, strict=True))
    return state


def write_state(directory: Path, name: str, state: Any) -> None:
    """Write ``name``.json and, where there are tensors, ``name``.safetensors into a directory.

    Takes None, bool, int, float, str, tensors, and lists, tuples and dicts of these (keys: str or int). Raises
    TypeError for anything else.
    """
    tensors: dict[str, Tensor] = {}
    tree = _split(state, tensors)
    (directory / f"{name}.json").write_text(json.dumps(tree), encoding="utf-8")
    if tensors:
        path = directory / f"{name}.safetensors"
        try:
            save_file(tensors, path)
        except SafetensorError as error:
            # safetensors has an error of its own for a full disk.
            raise OSError(f"{path.name}: {error}") from error


def read_state(directory: Path, name: str, device: torch.device | None = None) -> Any:
    """What ``write_state`` wrote, exactly. Raises CheckpointDamaged naming the file that is missing or damaged."""
    try:
        tree = json.loads((directory / f"{name}.json").read_text(encoding="utf-8"))
        tensors: dict[str, Tensor] = {}
        path = directory / f"{name}.safetensors"
        if path.exists():
            tensors = load_file(path, device=str(device or "cpu"))
        return _join(tree, tensors)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointDamaged(f"{directory / name} is damaged: {error}") from error


def _split(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().contiguous()
        return {_TENSOR: name}
    if isinstance(value, dict):
        assert all(isinstance(key, (str, int)) for key in value), (
            f"state has keys that are neither str nor int: {value.keys()}"
        )
        return {_ITEMS: [[key, _split(item, tensors)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {_TUPLE: [_split(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_split(item, tensors) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"state holds a {type(value).__name__}, which is neither plain data nor a tensor")


def _join(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_join(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if _TENSOR in tree:
        return tensors[tree[_TENSOR]]
    if _TUPLE in tree:
        return tuple(_join(item, tensors) for item in tree[_TUPLE])
    return {key: _join(item, tensors) for key, item in tree[_ITEMS]}
