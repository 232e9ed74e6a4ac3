"""Files of LyCORIS: what is written for other programs, and what training goes on from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from lycoris.modules import LokrModule, LycorisBaseModule  # type: ignore[import-untyped]

from st import StError
from st.errors import OutputUnwritable
from st.model.files.adapter_file import read_adapter_file, write_adapter_file
from st.model.files.formats import DOWN, UP, LoraShape
from st_lycoris.modules import remade
from st_lycoris.preset import SETTINGS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from st.model.files.formats import AdapterFormat
    from st_lycoris.options import Algorithm

FILE, CONFIG = "adapter.safetensors", "lycoris_config"
PREFIXES = ("lycoris", "lora_unet", "lora_transformer")
Modules = Mapping[str, tuple["nn.Module", LycorisBaseModule]]

_THEIRS = {ours: theirs for theirs, ours in SETTINGS.items()} | {
    "rank": "dim",
    "alpha": "alpha",
    "use_dora": "weight_decompose",
}


def stem(prefix: str, path: str) -> str:
    """What the names of a layer's tensors begin with."""
    return f"{prefix}_{path.replace('.', '_')}"


def refuse_twins(paths: Sequence[str]) -> None:
    """Raises StError for two layers that would have one name in a file."""
    seen: dict[str, str] = {}
    for path in paths:
        other = seen.setdefault(stem("", path), path)
        if other != path:
            raise StError(
                f"{other!r} and {path!r} have one name in a LyCORIS file", fix="exclude one of them from the adapter"
            )


def write_lycoris(path: Path, modules: Modules, prefix: str, config: str, metadata: Mapping[str, str]) -> None:
    """The library's own layout, with the settings that the network can be built from in its header and beside it."""
    tensors = {
        f"{stem(prefix, name)}.{key}": tensor
        for name, (_, module) in modules.items()
        for key, tensor in module.state_dict().items()
    }
    write_adapter_file(path, tensors, {**metadata, "format": "pt", CONFIG: config})
    beside = path.with_name(f"{CONFIG}.json")
    partial = beside.with_name(f".{beside.name}.partial")
    try:
        partial.write_text(config, encoding="utf-8")
        partial.replace(beside)
    except OSError as error:
        raise OutputUnwritable(
            f"{str(beside)!r} cannot be written: {error}", fix="free some space, or set output"
        ) from error


def write_diffusers(path: Path, modules: Modules, component: str, metadata: Mapping[str, str]) -> None:
    """LoKr as diffusers reads it through peft: paths with dots, and the scale inside of the smaller factor."""
    write_adapter_file(path, _diffusers_tensors(modules, component), {**metadata, "format": "pt"})


def refuse_unlike_diffusers(modules: Modules) -> None:
    """Raises StError for an adapter that diffusers would not read, or would read as something else."""
    from diffusers.utils.peft_utils import _create_lokr_config

    other = [path for path, (_, one) in modules.items() if not isinstance(one, LokrModule)]
    odd = [
        path
        for path, (_, one) in modules.items()
        if isinstance(one, LokrModule) and (one.wd or one.tucker or not one.use_w1)
    ]
    why = (
        f"{(other or odd)[0]!r} is {'not lokr' if other else 'lokr with parts that it does not know'}"
        if other or odd
        else ""
    )
    if not why:
        try:
            _create_lokr_config(_diffusers_tensors(modules, ""), None)  # type: ignore[no-untyped-call]
        except ValueError as error:
            why = str(error).split(" Please")[0]
    if why:
        raise StError(
            "adapter.format = 'diffusers': diffusers cannot read this adapter",
            why=why,
            fix="leave it out, or use lokr alone, with one factor, without use_dora, use_tucker and decompose_both",
        )


def component_of(formats: Mapping[str, AdapterFormat]) -> str:
    """What diffusers calls the denoiser: what its names of tensors begin with. Raises StError where it knows none."""
    if "diffusers" not in formats:
        known = ", ".join(formats) or "none"
        raise StError("adapter.format = 'diffusers': diffusers does not know this family", why=f"it has {known}")
    state = {f"layer.{DOWN}": torch.zeros(1, 1), f"layer.{UP}": torch.zeros(1, 1)}
    names, _ = formats["diffusers"].to_file(state, LoraShape({"layer": 1}, {"layer": 1.0}))
    return next(iter(names)).partition("layer.")[0].rstrip(".")


def config_of(settings: Mapping[str, Algorithm], prefix: str) -> str:
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
        "lora_prefix": prefix,
    }
    # What is left out of it here would otherwise be the last preset that this process applied.
    scope |= {"enable_conv": True, "use_fnmatch": False, "module_algo_map": {}, "exclude_name": []}
    return json.dumps({**root, "apply_preset": scope}, indent=2)


def read_start(start: str, denoiser: nn.Module, prefix: str) -> dict[str, LycorisBaseModule]:
    """A module for each layer of a file. Raises StError for another kind of file, and for another model's."""
    tensors, _ = read_adapter_file(Path(start).expanduser())
    stems = dict.fromkeys(key.partition(".")[0] for key in tensors)
    paths = [path for path, _ in denoiser.named_modules() if path]
    by_stem = {stem(one, path): path for one in (*PREFIXES, prefix) for path in paths}
    foreign = [one for one in stems if one not in by_stem]
    if foreign or not stems:
        raise StError(
            f"adapter.start = {start!r} is no LyCORIS file of {type(denoiser).__name__}",
            why=f"{len(foreign)} of its {len(stems)} layers are not there, such as {foreign[0]!r}"
            if foreign
            else "it is empty",
            fix='name a file that was trained on this model; [adapter] kind = "lora" goes on from plain LoRA',
        )
    order = {path: place for place, path in enumerate(paths)}
    found: dict[str, LycorisBaseModule] = {}
    for one in sorted(stems, key=lambda one: order[by_stem[one]]):
        path = by_stem[one]
        try:
            found[path] = remade(path, denoiser.get_submodule(path), tensors, one)
        except StError as error:
            raise StError(f"adapter.start = {start!r}: {error.what}", why=error.why, fix=error.fix) from error
    return found


def _diffusers_tensors(modules: Modules, component: str) -> dict[str, Tensor]:
    tensors = {}
    for path, (_, module) in modules.items():
        for key, tensor in module.state_dict().items():
            if key != "alpha":
                scaled = tensor * module.scale if key == "lokr_w1" else tensor
                tensors[f"{component}.{path}.{key}" if component else f"{path}.{key}"] = scaled
    return tensors


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
