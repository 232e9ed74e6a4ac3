"""What diffusers and peft write and read: dots in names, and how an update is scaled in the file's header."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from st.errors import StError
from st.jsonfile import JsonUnusable, parse_object
from st.model.files.formats import DOWN, MAGNITUDE, UP, AdapterFormat, LoraShape, by_layer, shape_of, unkeyed, unwrapped
from st.model.files.readers import DIFFUSERS, Planned

if TYPE_CHECKING:
    from torch import Tensor

METADATA = "lora_adapter_metadata"
TRAINED = "st_trained_alphas"
"""In the header where scales were folded into weights: alpha as it was trained, by the name of a layer in the file."""
_LOKR = frozenset({"lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "alpha"})


def diffusers_format(prefix: str = "transformer") -> AdapterFormat:
    """What diffusers and peft write: ``<prefix>.<path>.lora_A.weight``. prefix: the component.

    alpha / rank is inside of ``lora_B``, because other programs that know these names apply it unscaled.
    """
    return _Diffusers(prefix)


def header_alphas(header: str, prefix: str, ranks: Mapping[str, int]) -> dict[str, float]:
    """alpha of each module of a component, from ``lora_adapter_metadata``. Raises StError for what is no JSON table."""
    return _alphas(_unprefixed(header_table({METADATA: header}, METADATA), prefix), ranks)


def joined_headers(one: Mapping[str, str], other: Mapping[str, str]) -> dict[str, str]:
    """Two components' headers as one."""
    both = {**one, **other}
    for name in (METADATA, TRAINED):
        if name in one and name in other:
            both[name] = json.dumps({**header_table(one, name), **header_table(other, name)}, indent=2, sort_keys=True)
    return both


@dataclass(frozen=True, slots=True)
class _Diffusers(AdapterFormat):
    prefix: str

    def to_file(self, state: Mapping[str, Tensor], shape: LoraShape) -> tuple[dict[str, Tensor], dict[str, str]]:
        tensors: dict[str, Tensor] = {}
        for path, parts in by_layer(state).items():
            written = _low_rank(parts, shape.alphas[path]) if path in shape.ranks else _kronecker(path, parts)
            tensors |= {_joined(self.prefix, f"{path}.{part}"): tensor for part, tensor in written.items()}
        header = {"format": "pt"}
        if shape.ranks:
            config = {_joined(self.prefix, key): value for key, value in _peft_config(state, shape).items()}
            header[METADATA] = json.dumps(config, indent=2, sort_keys=True)
        folded = {path: alpha for path, alpha in shape.alphas.items() if alpha != shape.ranks[path]}
        if folded:
            named = {_joined(self.prefix, path): alpha for path, alpha in folded.items()}
            header[TRAINED] = json.dumps(named, indent=2, sort_keys=True)
        return tensors, header

    def from_file(
        self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
    ) -> tuple[dict[str, Tensor], LoraShape]:
        plain = {unwrapped(key): tensor for key, tensor in tensors.items()}

        def path_of(stem: str) -> str | None:
            if not self.prefix:
                return stem
            return stem.removeprefix(f"{self.prefix}.") if stem.startswith(f"{self.prefix}.") else None

        state, shape = unkeyed(plain, path_of, f"{self.prefix}.<module>.{DOWN}")
        for path, parts in by_layer(state).items():
            if {"lokr_w2_a", "lokr_w1"} <= parts.keys() and "alpha" not in parts:
                state[f"{path}.alpha"] = parts["lokr_w1"].new_tensor(float(parts["lokr_w2_b"].shape[0]))
        if METADATA in metadata:
            shape = shape_of(state, header_alphas(metadata[METADATA], self.prefix, shape.ranks))
        if TRAINED in metadata:
            named = _unprefixed(header_table(metadata, TRAINED), self.prefix)
            trained = {path: float(alpha) for path, alpha in named.items() if path in shape.ranks}
            for path, alpha in trained.items():
                state[f"{path}.{UP}"] = rescaled(state[f"{path}.{UP}"], shape.ranks[path] / alpha)
            shape = LoraShape(shape.ranks, {**shape.alphas, **trained})
        return state, shape

    def refusals(self, planned: Sequence[Planned]) -> Sequence[str]:
        odd = [
            one.called
            for one in planned
            if one.kind not in DIFFUSERS.kinds or one.extras - ({"dora"} if one.kind != "lokr" else set())
        ]
        return [f"diffusers cannot read {one}" for one in dict.fromkeys(odd)]

    def caveats(self, planned: Sequence[Planned]) -> Sequence[str]:
        if any(one.kind == "lokr" for one in planned):
            return ["diffusers reads lokr by load_lora_adapter of the denoiser; other programs do not know these names"]
        return ()


def _low_rank(parts: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """What changes nothing at a scale of 1. Differences of biases have no place and are left out."""
    rank = len(parts[DOWN])
    written = {part: tensor for part, tensor in parts.items() if part in (DOWN, UP, MAGNITUDE)}
    return {**written, UP: rescaled(parts[UP], alpha / rank)}


def _kronecker(path: str, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Kronecker products with the scale inside of the smaller factor. Raises StError for any other kind."""
    if not {"lokr_w1"} <= parts.keys() or parts.keys() - _LOKR:
        odd = next((part for part in parts if part not in _LOKR), next(iter(parts)))
        raise StError(
            f"diffusers cannot read the update of {path!r}",
            why=f"it has {odd}; LoRA, and Kronecker products with a whole first factor, can be read",
            fix="leave format 'diffusers' out, or use lora, or lokr without use_dora, use_tucker and decompose_both",
        )
    scale = 1.0
    if "lokr_w2_a" in parts and "alpha" in parts and not parts["alpha"].is_meta:
        scale = float(parts["alpha"]) / parts["lokr_w2_b"].shape[0]
    scaled = rescaled(parts["lokr_w1"], scale)
    return {**{part: tensor for part, tensor in parts.items() if part != "alpha"}, "lokr_w1": scaled}


def rescaled(tensor: Tensor, scale: float) -> Tensor:
    """A tensor times a number: in its own precision where no digit is lost, else in float32 at least."""
    if scale == 1:
        return tensor
    exact = math.frexp(scale)[0] == 0.5 or tensor.dtype.itemsize >= 4
    return tensor * scale if exact else tensor.float() * scale


def header_table(metadata: Mapping[str, str], name: str) -> dict[str, Any]:
    """A table that a header holds as JSON. Raises StError for what is none."""
    try:
        return parse_object(metadata[name])
    except JsonUnusable as error:
        raise StError(f"{name} in the file's header cannot be read: {error}") from error


def _joined(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else key


def _unprefixed(config: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(f"{prefix}."): value for key, value in config.items()} if prefix else dict(config)


def _peft_config(state: Mapping[str, Tensor], shape: LoraShape) -> dict[str, object]:
    """What peft's LoraConfig is built from: a scale of 1 everywhere, as the weights hold it."""
    rank = Counter(shape.ranks.values()).most_common(1)[0][0]
    # A pattern without ^ would match every path that ends with it.
    others = {f"^{path}": one for path, one in shape.ranks.items() if one != rank}
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": others,
        "alpha_pattern": others,
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
