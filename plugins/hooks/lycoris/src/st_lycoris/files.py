"""Files of LyCORIS: what is written for other programs, and what training goes on from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from lycoris.modules import LokrModule, LycorisBaseModule  # type: ignore[import-untyped]

from st import AdapterFormat, LoraShape, StError, kohya_format
from st.errors import OutputUnwritable
from st.model.files.adapter_file import read_adapter_file
from st.model.files.formats import DOWN, MAGNITUDE, UP, by_layer, read_layout, recognise, shape_of
from st_lycoris.modules import remade
from st_lycoris.names import LIBRARY, Unconstrained
from st_lycoris.preset import SETTINGS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from st_lycoris.options import Algorithm

CONFIG = "lycoris_config"
Modules = Mapping[str, tuple["nn.Module", LycorisBaseModule]]

_THEIRS = {ours: theirs for theirs, ours in SETTINGS.items()} | {
    "rank": "dim",
    "alpha": "alpha",
    "use_dora": "weight_decompose",
}
_OF_LORA = {"lora_down.weight": DOWN, "lora_up.weight": UP, "dora_scale": MAGNITUDE}


@dataclass(frozen=True, slots=True)
class Library(AdapterFormat):
    """The library's own layout: the settings that the network can be built from are in its header. inner: the names."""

    inner: AdapterFormat
    config: str

    def to_file(self, state: Mapping[str, Tensor], shape: LoraShape) -> tuple[dict[str, Tensor], dict[str, str]]:
        tensors, header = self.inner.to_file(state, shape)
        return tensors, {**header, CONFIG: self.config}

    def from_file(
        self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
    ) -> tuple[dict[str, Tensor], LoraShape]:
        return self.inner.from_file(tensors, metadata)


def layouts(formats: Mapping[str, AdapterFormat], paths: Sequence[str], config: str) -> dict[str, AdapterFormat]:
    """What can be written of these layers: each of the family's formats, and the library's own layout."""
    others = {name: Unconstrained(one) for name, one in formats.items()}
    return {**others, LIBRARY: Library(kohya_format(paths, LIBRARY), config)}


def portable(modules: Modules) -> tuple[dict[str, Tensor], LoraShape]:
    """The adapter by the names of formats: what is a product of two matrices is LoRA, the rest has the library's."""
    state, alphas = dict[str, "Tensor"](), dict[str, float]()
    for path, (_, module) in modules.items():
        parts: dict[str, Tensor] = {name: tensor.detach() for name, tensor in module.state_dict().items()}
        if "lora_down.weight" in parts and "lora_mid.weight" not in parts:
            alphas[path] = float(parts.pop("alpha"))
            parts = {_OF_LORA[name]: tensor for name, tensor in parts.items()}
            if MAGNITUDE in parts:
                matrix = parts[DOWN].ndim == 2
                flat = parts[MAGNITUDE].reshape(-1)
                parts[MAGNITUDE] = flat if matrix else flat.reshape(1, -1, *[1] * (parts[DOWN].ndim - 2))
        elif "on_input" in parts:
            parts["ia3.weight"] = parts.pop("weight")
        state |= {f"{path}.{name}": tensor for name, tensor in parts.items()}
    return state, shape_of(state, alphas)


def write_config(directory: Path, config: str) -> None:
    """The settings as a file of their own, beside the adapter. Raises OutputUnwritable."""
    beside = directory / f"{CONFIG}.json"
    partial = beside.with_name(f".{beside.name}.partial")
    try:
        partial.write_text(config, encoding="utf-8")
        partial.replace(beside)
    except OSError as error:
        raise OutputUnwritable(
            f"{str(beside)!r} cannot be written: {error}", fix="free some space, or set output"
        ) from error


def refuse_unlike_diffusers(formats: Mapping[str, AdapterFormat], modules: Modules) -> None:
    """Raises StError for Kronecker products that diffusers would not read, or would read as something else."""
    from diffusers.utils.peft_utils import _create_lokr_config

    mine = {path: one for path, one in modules.items() if isinstance(one[1], LokrModule)}
    if not mine:
        return
    tensors, _ = formats["diffusers"].to_file(*portable(mine))
    try:
        _create_lokr_config(dict(tensors), None)  # type: ignore[no-untyped-call]
    except ValueError as error:
        raise StError(
            "adapter.format = 'diffusers': diffusers cannot read this adapter",
            why=str(error).split(" Please")[0],
            fix="leave it out, or use one factor for all layers",
        ) from error


def config_of(settings: Mapping[str, Algorithm]) -> str:
    """JSON that ``lycoris.create_lycoris`` builds the same network from: every layer by its path."""
    layers = {f"^{re.escape(path)}$": _theirs(one) for path, one in settings.items()}
    first = next(iter(settings.values()))
    root = {
        "algo": _algo(first),
        "multiplier": 1.0,
        "linear_dim": first.rank,
        "linear_alpha": _alpha(first),
        "train_norm": any(one.algo == "norm" for one in settings.values()),
    }
    scope: dict[str, object] = {
        "target_module": [],
        "target_name": list(layers),
        "name_algo_map": layers,
        "lora_prefix": LIBRARY,
    }
    # What is left out of it here would otherwise be the last preset that this process applied.
    scope |= {"enable_conv": True, "use_fnmatch": False, "module_algo_map": {}, "exclude_name": []}
    return json.dumps({**root, "apply_preset": scope}, indent=2)


def read_start(
    start: str, denoiser: nn.Module, formats: Mapping[str, AdapterFormat]
) -> tuple[dict[str, LycorisBaseModule], list[str]]:
    """(a module for each layer of a file, the tensors of it that no module has a place for).

    The family's formats are read, and what other programs write of the same layers under their paths in the denoiser.
    Raises StError for another model's.
    """
    tensors, metadata = read_adapter_file(Path(start).expanduser())
    paths = [path for path, _ in denoiser.named_modules() if path]
    by_path = [kohya_format(paths, prefix) for prefix in (LIBRARY, "lora_unet", "lora_transformer")]
    try:
        state, shape = read_layout(tensors, metadata, [*formats.values(), *by_path, recognise(tensors, paths)])
    except StError as error:
        raise StError(f"adapter.start = {start!r}: {error.what}", why=error.why, fix=error.fix or _FIX) from error
    layers = by_layer(state)
    foreign = sorted(layers.keys() - set(paths))
    if foreign or not layers:
        raise StError(
            f"adapter.start = {start!r} is no LyCORIS file of {type(denoiser).__name__}",
            why=f"{len(foreign)} of its {len(layers)} layers are not there, such as {foreign[0]!r}"
            if foreign
            else "it is empty",
            fix=_FIX,
        )
    found: dict[str, LycorisBaseModule] = {}
    dropped = []
    for path in (one for one in paths if one in layers):
        parts = _library_parts(layers[path], shape.alphas.get(path))
        if "diff_b" in parts and "diff" not in parts:
            dropped.append(f"{path}.diff_b")
            del parts["diff_b"]
            if not parts:
                continue
        named = {f"{path}.{name}": tensor for name, tensor in parts.items()}
        try:
            found[path] = remade(path, denoiser.get_submodule(path), named, path)
        except StError as error:
            raise StError(f"adapter.start = {start!r}: {error.what}", why=error.why, fix=error.fix) from error
    return found, dropped


_FIX = "name a file that was trained on this model"


def _library_parts(parts: Mapping[str, Tensor], alpha: float | None) -> dict[str, Tensor]:
    """The inverse of ``portable``, of one layer."""
    back = {ours: theirs for theirs, ours in _OF_LORA.items()} | {"ia3.weight": "weight"}
    named = {back.get(name, name): tensor for name, tensor in parts.items()}
    if "dora_scale" in named and "lora_down.weight" in named:
        named["dora_scale"] = named["dora_scale"].reshape(-1, *[1] * (named["lora_down.weight"].ndim - 1))
    ranks = [named[name].shape[0] for name in ("lokr_w2_b", "lokr_w1_b", "hada_w1_b") if name in named]
    if alpha is None and "alpha" not in named and any(name.startswith(("lokr_", "hada_")) for name in named):
        # Where a file does not say, the scale is 1, and the library asks for an alpha all the same.
        alpha = float(ranks[0]) if ranks else 1.0
    if alpha is not None:
        named["alpha"] = torch.tensor(alpha)
    return named


def _theirs(settings: Algorithm) -> dict[str, object]:
    """Settings of one layer, by the library's names."""
    if settings.algo == "norm":
        return {}
    given = {_THEIRS[name]: value for name, value in settings.settings().items()}
    if "alpha" in given:
        given["alpha"] = _alpha(settings)
    # The library reads dropouts of the network as a whole, and its files have scalars inside of their factors.
    for name in ("dropout", "rank_dropout", "module_dropout", "use_scalar", "block_size"):
        given.pop(name, None)
    return {"algo": _algo(settings), **given}


def _algo(settings: Algorithm) -> str:
    """What a file of it holds: that of dylora is a LoRA. norm goes with any other."""
    return {"dylora": "locon", "norm": "lokr"}.get(settings.algo, settings.algo)


def _alpha(settings: Algorithm) -> float:
    return settings.rank if settings.alpha is None else settings.alpha
