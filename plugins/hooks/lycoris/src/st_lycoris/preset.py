"""Presets: which layer a file of LyCORIS settings gives which algorithm, as the library itself reads it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from st import StError
from st.jsonfile import JsonUnusable, read_object
from st.spelling import did_you_mean
from st_lycoris.options import USES, Algorithm

if TYPE_CHECKING:
    from torch import nn

SETTINGS: Mapping[str, str] = {
    "algo": "algo",
    "dim": "rank",
    "linear_dim": "rank",
    "alpha": "alpha",
    "linear_alpha": "alpha",
    "factor": "factor",
    "full_matrix": "full_matrix",
    "decompose_both": "decompose_both",
    "block_size": "block_size",
    "constraint": "constraint",
    "rescaled": "rescaled",
    "train_on_input": "on_input",
    "use_tucker": "use_tucker",
    "use_scalar": "use_scalar",
    "dora_wd": "use_dora",
    "weight_decompose": "use_dora",
    "dropout": "dropout",
    "rank_dropout": "rank_dropout",
    "module_dropout": "module_dropout",
}
"""The library's names of settings, and ours."""

_ROOT = {"multiplier", "conv_dim", "conv_alpha", "train_norm", "apply_preset", "bypass_mode", "wd_on_output"}
_TABLES = {"module_algo_map", "name_algo_map"}
_SCOPE = {"enable_conv", "target_module", "target_name", "use_fnmatch", "exclude_name", "lora_prefix", *_TABLES}
_CLASSES = ("Linear", "Conv1d", "Conv2d", "Conv3d", "GroupNorm", "LayerNorm")
_CONVOLUTIONS = ("Conv1d", "Conv2d", "Conv3d")


@dataclass(frozen=True, slots=True)
class Preset:
    """A file of LyCORIS settings. conv: what convolutions with a kernel above 1 have instead; None: they do not learn.

    by_class, by_name: other settings, as the file writes them, by class of modules and by path.
    """

    default: Algorithm
    conv: Mapping[str, object] | None
    norms: bool
    classes: tuple[str, ...]
    names: tuple[str, ...]
    by_class: Mapping[str, Mapping[str, object]]
    by_name: Mapping[str, Mapping[str, object]]
    exclude: tuple[str, ...]
    wildcards: bool

    @property
    def algorithms(self) -> list[Algorithm]:
        """Every setting that a layer may get."""
        others = [self.default.replaced(one) for one in (*self.by_class.values(), *self.by_name.values())]
        return [self.default, *others, *([Algorithm.model_validate({"algo": "norm"})] if self.norms else [])]

    @property
    def rebuilds(self) -> bool:
        """Whether any layer's whole weight is computed anew."""
        return any(one.rebuilds for one in self.algorithms)

    def layers(self, denoiser: nn.Module) -> dict[str, Algorithm]:
        """Settings by path. Raises StError for what names nothing."""
        found: dict[str, Algorithm] = {}
        used: set[str] = set()
        for path, module in denoiser.named_modules():
            kind = type(module).__name__
            if self._named(path, self.exclude):
                continue
            if self._named(path, self.names):
                if self._add(found, path, module, self._of_name(path) or self.by_class.get(kind, {})):
                    used |= {name for name in self.names if self._named(path, (name,))}
            elif kind in self.classes:
                for inner, below, settings in self._below(path, module, self.by_class.get(kind, {}), used):
                    self._add(found, inner, below, settings)
        self._refuse_unused(denoiser, used, found)
        return found

    def _below(
        self, path: str, root: nn.Module, settings: Mapping[str, object], used: set[str]
    ) -> Iterator[tuple[str, nn.Module, Mapping[str, object]]]:
        """Every module of a matching one; those of a class with settings of its own have these, and so on inwards."""
        used.add(type(root).__name__)
        for name, module in root.named_modules():
            full = f"{path}.{name}" if path and name else path or name
            if self._named(full, self.exclude):
                continue
            kind = type(module).__name__
            if kind in self.by_class and module is not root:
                yield from self._below(full, module, self.by_class[kind], used)
            else:
                yield full, module, settings

    def _add(self, found: dict[str, Algorithm], path: str, module: nn.Module, changes: Mapping[str, object]) -> bool:
        """The first settings that reach a layer count; whether these do."""
        kind = _layer_kind(module)
        conv = kind == "conv"
        if path in found:
            return False
        if self.norms and _is_norm(module):
            found[path] = Algorithm.model_validate({"algo": "norm", "module_dropout": self.default.module_dropout})
        elif kind and not (conv and self.conv is None and "rank" not in changes):
            given = _applicable(self.conv or {}, changes, self.default) if conv else {}
            found[path] = self.default.replaced({**given, **changes})
        return path in found

    def _of_name(self, path: str) -> Mapping[str, object]:
        exact = self.by_name.get(path)
        if exact is not None:
            return exact
        return next((one for name, one in self.by_name.items() if self._matches(name, path)), {})

    def _named(self, path: str, names: tuple[str, ...]) -> bool:
        return bool(path) and (path in names or any(self._matches(name, path) for name in names))

    def _matches(self, name: str, path: str) -> bool:
        return fnmatch(path, name) if self.wildcards else bool(re.match(name, path))

    def _refuse_unused(self, denoiser: nn.Module, used: set[str], found: Mapping[str, Algorithm]) -> None:
        kinds = sorted({type(module).__name__ for module in denoiser.modules()})
        wanted = (*self.classes, *self.names) if self.classes != _CLASSES else self.names
        unused = [one for one in wanted if one not in used]
        if found and not unused:
            return
        name = unused[0] if unused else ""
        close = did_you_mean(name, kinds if name in self.classes else [path for path, _ in denoiser.named_modules()])
        raise StError(
            f"adapter.preset: {name!r} names nothing that learns in {type(denoiser).__name__}"
            if name
            else f"adapter.preset names no layer of {type(denoiser).__name__}",
            why=close or "what it names, if anything, already has the settings of a class around it",
            fix=f"there are modules of the classes {', '.join(kinds)}",
        )


def read_preset(file: str) -> Preset:
    """The settings of a JSON file. Raises StError naming a key that is unknown, or that cannot be kept."""
    path = Path(file).expanduser()
    setting = f"adapter.preset = {file!r}"
    try:
        data = read_object(path)
    except FileNotFoundError as error:
        raise StError(f"{setting}: there is no such file") from error
    except (OSError, JsonUnusable) as error:
        raise StError(f"{setting} is no table in JSON: {error}") from error
    scope = data.get("apply_preset", {})
    if not isinstance(scope, dict) or not all(isinstance(scope.get(table, {}), dict) for table in _TABLES):
        raise StError(f"{setting}: apply_preset and the maps in it are tables")
    _refuse_keys(setting, data, {*SETTINGS, *_ROOT})
    _refuse_keys(setting, scope, _SCOPE)
    if data.get("multiplier", 1) != 1:
        raise StError(
            f"{setting}: multiplier = {data['multiplier']!r}, and whoever loads the file would not know of it",
            fix="set it to 1, and linear_alpha to what it was times that",
        )
    if not data.get("wd_on_output", True):
        raise StError(
            f"{setting}: wd_on_output = false gives files that the library does not read back", fix="leave it out"
        )
    try:
        return _preset(setting, data, scope)
    except ValidationError as error:
        first = error.errors()[0]
        raise StError(f"{setting}: {'.'.join(map(str, first['loc']))} {first['msg']}") from error
    except re.error as error:
        raise StError(f"{setting}: {error.pattern!r} is no regular expression: {error}") from error


def _preset(setting: str, data: Mapping[str, Any], scope: Mapping[str, Any]) -> Preset:
    root = {"rank": 4, "alpha": 1, "algo": "locon", **_ours(data)}
    # Every such file has a dimension and an alpha, whatever its algorithm makes of them. An alpha of 0 is the rank.
    moot = {"rank", "alpha"} - USES.get(str(root["algo"]), frozenset()) | ({"alpha"} if not root["alpha"] else set())
    moot |= {"rank", "alpha"} if root.get("full_matrix") else set()
    default = Algorithm.model_validate({name: value for name, value in root.items() if name not in moot})
    tables: dict[str, dict[str, dict[str, object]]] = {}
    for table in _TABLES:
        for name, one in scope.get(table, {}).items():
            _refuse_keys(f"{setting}: {table}[{name!r}]", one, set(SETTINGS))
        tables[table] = {name: _ours(one) for name, one in scope.get(table, {}).items()}
        for changes in tables[table].values():
            if changes.get("full_matrix", default.full_matrix):
                changes.pop("rank", None), changes.pop("alpha", None)
            default.replaced(changes)
    names = (*scope.get("target_name", ()), *tables["name_algo_map"])
    exclude = tuple(scope.get("exclude_name", ()))
    wildcards = bool(scope.get("use_fnmatch", False))
    for pattern in (*names, *exclude):
        re.compile("" if wildcards else pattern)
    dim, alpha = data.get("conv_dim") or None, data.get("conv_alpha") or None
    given = {name: value for name, value in (("rank", dim), ("alpha", alpha)) if value is not None}
    return Preset(
        default=default,
        conv=given if scope.get("enable_conv", True) else None,
        norms=bool(data.get("train_norm", False)),
        classes=(*scope.get("target_module", _CLASSES), *tables["module_algo_map"]),
        names=tuple(dict.fromkeys(names)),
        by_class=tables["module_algo_map"],
        by_name=tables["name_algo_map"],
        exclude=exclude,
        wildcards=wildcards,
    )


def _ours(data: Mapping[str, Any]) -> dict[str, object]:
    """Settings by our names."""
    given = {SETTINGS[name]: value for name, value in data.items() if name in SETTINGS and value is not None}
    if given.get("algo") == "lora":
        given["algo"] = "locon"
    return given


def _applicable(conv: Mapping[str, object], changes: Mapping[str, object], default: Algorithm) -> dict[str, object]:
    uses = USES[str(changes.get("algo", default.algo))]
    return {name: value for name, value in conv.items() if name in uses}


def _refuse_keys(setting: str, table: Mapping[str, Any], known: set[str]) -> None:
    for key in table:
        if key not in known:
            close = did_you_mean(key, known)
            raise StError(f"{setting}: there is no setting {key!r}. {close}".rstrip())


def _layer_kind(module: nn.Module) -> str:
    """conv for one with a kernel above 1, else linear; '' for what has no weights to adapt."""
    from torch import nn

    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return "conv" if module.kernel_size[0] != 1 else "linear"
    return ""


def _is_norm(module: nn.Module) -> bool:
    """Whether it is a normalisation that the library trains."""
    from torch import nn

    both = getattr(module, "weight", None) is not None and getattr(module, "bias", None) is not None
    return both and isinstance(module, (nn.LayerNorm, nn.GroupNorm))
