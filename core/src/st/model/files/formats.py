"""Formats: adapter files as other programs write and read them."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from st.errors import StError

if TYPE_CHECKING:
    from torch import Tensor

DOWN, UP, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
PARTS = (DOWN, UP, MAGNITUDE)
METADATA = "lora_adapter_metadata"
_WRAPPERS = re.compile(r"(^|(?<=\.))(base_model\.model|_orig_mod|_fsdp_wrapped_module)\.|^module\.")


@dataclass(frozen=True, slots=True)
class LoraShape:
    """How large a low-rank adapter is, by module path. The update is scaled by alpha / rank."""

    ranks: Mapping[str, int]
    alphas: Mapping[str, float]


class UnknownTensors(StError):
    """Tensors of a file that a format has no place for. share: how many of all, in (0, 1]."""

    def __init__(self, unknown: Sequence[str], total: int, *, why: str = "") -> None:
        named = ", ".join(map(repr, unknown[:5]))
        super().__init__(f"{len(unknown)} of {total} tensors belong nowhere, such as {named}", why=why)
        self.share = len(unknown) / total


class AdapterFormat(ABC):
    """A two-way map between our names and a file's.

    Ours are ``<module path>.lora_A.weight`` (rank, in), ``.lora_B.weight`` (out, rank) and, for DoRA,
    ``.lora_magnitude_vector``. ``from_file(*to_file(state, shape))`` gives the same state and shape.
    """

    @abstractmethod
    def to_file(self, state: Mapping[str, Tensor], shape: LoraShape) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors and the header's metadata."""

    @abstractmethod
    def from_file(
        self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
    ) -> tuple[dict[str, Tensor], LoraShape]:
        """Raises UnknownTensors naming the keys that this format does not know, and StError for what is not whole."""


def diffusers_format(prefix: str = "transformer") -> AdapterFormat:
    """What diffusers and peft write: ``<prefix>.<path>.lora_A.weight``, alpha in the header. prefix: the component."""
    return _Diffusers(prefix)


def comfyui_format(prefix: str = "diffusion_model", rename: Sequence[tuple[str, str]] = ()) -> AdapterFormat:
    """What ComfyUI reads: ``diffusion_model.<path>.lora_A.weight`` with ``.alpha`` keys.

    rename: (ours, theirs) beginnings of module paths, for families whose modules have other names there.
    """
    return _ComfyUI(prefix, tuple(rename))


def kohya_format(modules: Callable[[], Iterable[str]] | Iterable[str], prefix: str = "lora_unet") -> AdapterFormat:
    """What kohya's tools write: ``lora_unet_<path with underscores>.lora_down.weight``, ``.lora_up.weight``, ``alpha``.

    modules: every module path of the denoiser, or a function that lists them: which underscores were dots cannot be
    told from a key.
    """
    return _Kohya(modules, prefix)


def clean_key(key: str) -> str:
    """The key without what wrappers and peft's adapter name add to it. Raises StError where it is not ours then."""
    cleaned = _WRAPPERS.sub("", key).replace(".default.", ".")
    cleaned = cleaned.removesuffix(".default").replace(f"{MAGNITUDE}.weight", MAGNITUDE)
    if split_key(cleaned) is None:
        raise StError(f"{key!r} is not the name of an adapter's tensor", why=f"it must end with {', '.join(PARTS)}")
    return cleaned


def split_key(key: str) -> tuple[str, str] | None:
    """(module path, part) of one of our keys, or None."""
    for part in PARTS:
        if key.endswith(f".{part}") and not key.startswith("."):
            return key[: -len(part) - 1], part
    return None


def shape_of(state: Mapping[str, Tensor], alphas: Mapping[str, float]) -> LoraShape:
    """Ranks as the tensors have them; alpha is the rank where none is known."""
    ranks = {key[: -len(DOWN) - 1]: tensor.shape[0] for key, tensor in state.items() if key.endswith(f".{DOWN}")}
    return LoraShape(ranks, {path: float(alphas.get(path, rank)) for path, rank in ranks.items()})


def refuse_halves(state: Mapping[str, Tensor]) -> None:
    """Raises StError where one of a layer's two matrices is missing, or their ranks differ."""
    for path in dict.fromkeys(split[0] for key in state if (split := split_key(key))):
        down, up = state.get(f"{path}.{DOWN}"), state.get(f"{path}.{UP}")
        if down is None or up is None:
            raise StError(f"{path!r} has no {DOWN if down is None else UP}", why="an update is a product of two")
        if up.ndim < 2 or up.shape[1] != len(down):
            raise StError(
                f"'{path}.{UP}' has shape {tuple(up.shape)}, expected (outputs, {len(down)})",
                why=f"{DOWN} beside it has shape {tuple(down.shape)}",
            )


def header_alphas(header: str, prefix: str, ranks: Mapping[str, int]) -> dict[str, float]:
    """alpha of each module of a component, from ``lora_adapter_metadata``. Raises StError for what is no JSON table."""
    try:
        config = json.loads(header)
    except json.JSONDecodeError as error:
        raise StError(f"{METADATA} in the file's header is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise StError(f"{METADATA} in the file's header is no table")
    return _alphas(_unprefixed(config, prefix), ranks)


def recognise(tensors: Iterable[str], modules: Collection[str]) -> AdapterFormat:
    """The format that a file with these keys is in. modules: every module path of the denoiser."""
    keys = list(tensors)
    if any(key.startswith(("lora_unet_", "lora_transformer_")) for key in keys):
        first = next(key for key in keys if key.startswith(("lora_unet_", "lora_transformer_")))
        return kohya_format(modules, "_".join(first.split("_")[:2]))
    if any(key.startswith(("diffusion_model.", "model.diffusion_model.")) for key in keys):
        return comfyui_format()
    heads = Counter(_WRAPPERS.sub("", key).split(".")[0] for key in keys)
    children = {path.split(".")[0] for path in modules}
    prefixes = [head for head, _ in heads.most_common() if head not in children]
    return diffusers_format(prefixes[0] if prefixes else "")


def read_layout(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], formats: Iterable[AdapterFormat]
) -> tuple[dict[str, Tensor], LoraShape]:
    """What the first of these formats that knows every tensor reads: weights in the denoiser's names and shapes.

    Raises the error of the one that came closest.
    """
    refusals: list[StError] = []
    for one in formats:
        try:
            return one.from_file(tensors, metadata)
        except StError as error:
            refusals.append(error)
    raise min(refusals, key=lambda error: error.share if isinstance(error, UnknownTensors) else 0.0)


@dataclass(frozen=True, slots=True)
class _Diffusers(AdapterFormat):
    prefix: str

    def to_file(self, state: Mapping[str, Tensor], shape: LoraShape) -> tuple[dict[str, Tensor], dict[str, str]]:
        tensors = {_joined(self.prefix, clean_key(key)): tensor for key, tensor in state.items()}
        config = {_joined(self.prefix, key): value for key, value in _peft_config(state, shape).items()}
        return tensors, {"format": "pt", METADATA: json.dumps(config, indent=2, sort_keys=True)}

    def from_file(
        self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
    ) -> tuple[dict[str, Tensor], LoraShape]:
        state, alphas, unknown = {}, dict[str, float](), []
        for key, tensor in tensors.items():
            name = _old_names(_WRAPPERS.sub("", key))
            inside = name.startswith(f"{self.prefix}.") or not self.prefix
            name = name.removeprefix(f"{self.prefix}.") if self.prefix else name
            if inside and name.endswith(".alpha"):
                alphas[name.removesuffix(".alpha")] = float(tensor)
            elif inside and split_key(name) is not None:
                state[name] = tensor
            else:
                unknown.append(key)
        _refuse(unknown, len(tensors), f"{self.prefix}.<module>.{DOWN}")
        refuse_halves(state)
        if METADATA in metadata:
            alphas = header_alphas(metadata[METADATA], self.prefix, shape_of(state, {}).ranks)
        return state, shape_of(state, alphas)


@dataclass(frozen=True, slots=True)
class _ComfyUI(AdapterFormat):
    prefix: str
    rename: tuple[tuple[str, str], ...]

    def to_file(self, state: Mapping[str, Tensor], shape: LoraShape) -> tuple[dict[str, Tensor], dict[str, str]]:
        renamed = {path: f"{self.prefix}.{_replaced(path, self.rename)}" for path in shape.ranks}
        return _keyed(state, shape, renamed, _COMFYUI_PARTS), {"format": "pt"}

    def from_file(
        self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
    ) -> tuple[dict[str, Tensor], LoraShape]:
        back = tuple((theirs, ours) for ours, theirs in self.rename)

        def path_of(stem: str) -> str | None:
            stem = stem.removeprefix("model.") if stem.startswith("model.diffusion_model.") else stem
            inside = stem.startswith(f"{self.prefix}.")
            return _replaced(stem.removeprefix(f"{self.prefix}."), back) if inside else None

        return _unkeyed(tensors, path_of, f"{self.prefix}.<module>.{DOWN}")


@dataclass(frozen=True, slots=True)
class _Kohya(AdapterFormat):
    modules: Callable[[], Iterable[str]] | Iterable[str]
    prefix: str

    def to_file(self, state: Mapping[str, Tensor], shape: LoraShape) -> tuple[dict[str, Tensor], dict[str, str]]:
        renamed = {path: f"{self.prefix}_{path.replace('.', '_')}" for path in shape.ranks}
        return _keyed(state, shape, renamed, _KOHYA_PARTS), {"format": "pt"}

    def from_file(
        self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
    ) -> tuple[dict[str, Tensor], LoraShape]:
        modules = self.modules() if callable(self.modules) else self.modules
        paths = {f"{self.prefix}_{path.replace('.', '_')}": path for path in modules}
        return _unkeyed(tensors, paths.get, f"{self.prefix}_<module>.lora_down.weight")


_COMFYUI_PARTS = {DOWN: DOWN, UP: UP, MAGNITUDE: "dora_scale"}
_KOHYA_PARTS = {DOWN: "lora_down.weight", UP: "lora_up.weight", MAGNITUDE: "dora_scale"}
_OURS = {"lora_down.weight": DOWN, "lora_up.weight": UP, "dora_scale": MAGNITUDE, DOWN: DOWN, UP: UP}


def _keyed(
    state: Mapping[str, Tensor], shape: LoraShape, renamed: Mapping[str, str], parts: Mapping[str, str]
) -> dict[str, Tensor]:
    """Tensors under a file's names, with an alpha for each module."""
    import torch

    tensors = {}
    for key, tensor in state.items():
        split = split_key(clean_key(key))
        assert split is not None
        path, part = split
        # Theirs is (out, 1) for a matrix and (out, 1, 1, 1) for a convolution; peft's are (out,) and (1, out, 1, 1).
        shaped = tensor.reshape(-1, *[1] * (state[f"{path}.{DOWN}"].ndim - 1)) if part == MAGNITUDE else tensor
        tensors[f"{renamed[path]}.{parts[part]}"] = shaped
    return tensors | {f"{renamed[path]}.alpha": torch.tensor(alpha) for path, alpha in shape.alphas.items()}


def _unkeyed(
    tensors: Mapping[str, Tensor], path_of: Callable[[str], str | None], expected: str
) -> tuple[dict[str, Tensor], LoraShape]:
    state, alphas, unknown = {}, dict[str, float](), []
    for key, tensor in tensors.items():
        stem, part = _stem(key)
        path = path_of(stem)
        if path is None or part is None:
            unknown.append(key)
        elif part == "alpha":
            alphas[path] = float(tensor)
        else:
            state[f"{path}.{part}"] = tensor
    _refuse(unknown, len(tensors), expected)
    refuse_halves(state)
    for key in [key for key in state if key.endswith(f".{MAGNITUDE}")]:
        matrix = state[key.replace(MAGNITUDE, DOWN)].ndim == 2
        state[key] = state[key].reshape(-1) if matrix else state[key].reshape(1, -1, *[1] * (state[key].ndim - 2))
    return state, shape_of(state, alphas)


def _stem(key: str) -> tuple[str, str | None]:
    for theirs, ours in {**_OURS, "alpha": "alpha"}.items():
        if key.endswith(f".{theirs}"):
            return key[: -len(theirs) - 1], ours
    return key, None


def _old_names(key: str) -> str:
    """Files of before peft: ``.lora.down.weight`` and ``.lora.up.weight``."""
    return key.replace(".lora.down.weight", f".{DOWN}").replace(".lora.up.weight", f".{UP}")


def _refuse(unknown: Sequence[str], total: int, expected: str) -> None:
    if unknown:
        raise UnknownTensors(unknown, total, why=f"in this format tensors are named {expected}")


def _replaced(path: str, rename: Sequence[tuple[str, str]]) -> str:
    for old, new in rename:
        if path == old or path.startswith(f"{old}."):
            return new + path[len(old) :]
    return path


def _joined(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else key


def _unprefixed(config: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(f"{prefix}."): value for key, value in config.items()} if prefix else dict(config)


def _peft_config(state: Mapping[str, Tensor], shape: LoraShape) -> dict[str, object]:
    """What peft's LoraConfig is built from, so that a reader scales the update as it was trained."""
    rank = Counter(shape.ranks.values()).most_common(1)[0][0]
    alpha = Counter(shape.alphas.values()).most_common(1)[0][0]
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": _number(alpha),
        # A pattern without ^ would match every path that ends with it.
        "rank_pattern": {f"^{path}": one for path, one in shape.ranks.items() if one != rank},
        "alpha_pattern": {f"^{path}": _number(one) for path, one in shape.alphas.items() if one != alpha},
        "target_modules": sorted(shape.ranks),
        "use_dora": any(key.endswith(MAGNITUDE) for key in state),
        "use_rslora": False,
    }


def _alphas(config: Mapping[str, Any], ranks: Mapping[str, int]) -> dict[str, float]:
    """alpha of each module such that alpha / rank is the scale that peft would give it."""
    patterns = config.get("alpha_pattern") or {}
    alphas = {}
    for path, rank in ranks.items():
        matching = (value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", path))
        alpha = float(next(matching, config.get("lora_alpha", rank)))
        alphas[path] = alpha * rank**0.5 if config.get("use_rslora") else alpha
    return alphas


def _number(value: float) -> float | int:
    return int(value) if value == int(value) else value
