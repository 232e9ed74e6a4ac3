"""Formats: adapter files as other programs write and read them."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from st.errors import StError
from st.model.files.readers import COMFYUI, KOHYA, Planned, Reader

if TYPE_CHECKING:
    from torch import Tensor

    Ours = tuple[dict[str, Tensor], "LoraShape"]
    File = tuple[dict[str, Tensor], dict[str, str]]

DOWN, UP, MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
PARTS = (DOWN, UP, MAGNITUDE)
"""A low-rank update by our names. Its alpha is in the ``LoraShape``."""
OTHER_PARTS = frozenset(
    [
        "alpha",
        "dora_scale",
        "diff",
        "diff_b",
        "w_norm",
        "b_norm",
        "rescale",
        "oft_blocks",
        "on_input",
        "ia3.weight",
        "reshape_weight",
        "lora_B.bias",
        "hada_w1_a",
        "hada_w1_b",
        "hada_w2_a",
        "hada_w2_b",
        "hada_t1",
        "hada_t2",
        "lora_mid.weight",
        "lora_down.weight",
        "lora_up.weight",
        "lokr_w1",
        "lokr_w2",
        "lokr_w1_a",
        "lokr_w1_b",
        "lokr_w2_a",
        "lokr_w2_b",
        "lokr_t1",
        "lokr_t2",
        "a1.weight",
        "a2.weight",
        "b1.weight",
        "b2.weight",
        "bm.weight",
    ]
)
"""What files of other kinds of updates have beside a layer, each under the name that it was published with; IA3's
scale, which is "weight" in files, is ``ia3.weight``."""
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

    Ours are ``<module path>.<part>``: of low-rank updates ``lora_A.weight`` (rank, in), ``lora_B.weight`` (out, rank)
    and, for DoRA, ``lora_magnitude_vector``, with their scale in the ``LoraShape``; of other kinds the parts that their
    files have (``OTHER_PARTS``), ``alpha`` among them. ``from_file(*to_file(state, shape))`` gives the same updates.
    """

    @abstractmethod
    def to_file(self, state: Mapping[str, Tensor], shape: LoraShape) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors and the header's metadata. Raises StError for an update that the format cannot hold.

        Tensors may be on the meta device, to find that out.
        """

    @abstractmethod
    def from_file(
        self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
    ) -> tuple[dict[str, Tensor], LoraShape]:
        """Raises UnknownTensors naming the keys that this format does not know, and StError for what is not whole."""

    def refusals(self, planned: Sequence[Planned]) -> Sequence[str]:
        """Why it cannot hold what is planned, as far as that is known without the model; no torch is needed."""
        return ()

    def caveats(self, planned: Sequence[Planned]) -> Sequence[str]:
        """What the programs that read it would not show of what is planned, a sentence each; no torch is needed."""
        return ()


def comfyui_format(
    prefix: str = "diffusion_model", rename: Sequence[tuple[str, str]] = (), reader: Reader = COMFYUI
) -> AdapterFormat:
    """What ComfyUI reads: ``diffusion_model.<path>.lora_A.weight`` with ``.alpha`` keys.

    rename: (ours, theirs) beginnings of module paths, for families whose modules have other names there.
    """
    return _ComfyUI(prefix, tuple(rename), reader)


def kohya_format(
    modules: Callable[[], Iterable[str]] | Iterable[str], prefix: str = "lora_unet", reader: Reader = KOHYA
) -> AdapterFormat:
    """What kohya's tools write: ``lora_unet_<path with underscores>.lora_down.weight``, ``.lora_up.weight``, ``alpha``.

    modules: every module path of the denoiser, or a function that lists them: which underscores were dots cannot be
    told from a key. reader: the program that the file is for.
    """
    return _Kohya(modules, prefix, reader)


def clean_key(key: str) -> str:
    """The key without what wrappers and peft's adapter name add to it. Raises StError where it is not ours then."""
    cleaned = _WRAPPERS.sub("", key).replace(".default.", ".")
    cleaned = cleaned.removesuffix(".default").replace(f"{MAGNITUDE}.weight", MAGNITUDE)
    if split_key(cleaned) is None:
        raise StError(f"{key!r} is not the name of an adapter's tensor", why=f"it must end with {', '.join(PARTS)}")
    return cleaned


def split_key(key: str) -> tuple[str, str] | None:
    """(module path, part) of one of our keys, or None."""
    words = key.rsplit(".", 2)
    for path, part in ((".".join(words[:-2]), ".".join(words[-2:])), (".".join(words[:-1]), words[-1])):
        if path and (part in PARTS or part in OTHER_PARTS):
            return path, part
    return None


def renamed(state: Mapping[str, Tensor], shape: LoraShape, name: Callable[[str], str]) -> Ours:
    """The same adapter for modules with other paths."""
    tensors = {}
    for key, tensor in state.items():
        split = split_key(key)
        if split is None:
            raise StError(f"{key!r} is not the name of an adapter's tensor")
        tensors[f"{name(split[0])}.{split[1]}"] = tensor
    ranks = {name(path): rank for path, rank in shape.ranks.items()}
    return tensors, LoraShape(ranks, {name(path): alpha for path, alpha in shape.alphas.items()})


def by_layer(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The parts of each layer, by module path."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        split = split_key(clean_key(key))
        assert split is not None
        found.setdefault(split[0], {})[split[1]] = tensor
    return found


def shape_of(state: Mapping[str, Tensor], alphas: Mapping[str, float]) -> LoraShape:
    """Ranks as the tensors have them; alpha is the rank where none is known."""
    ranks = {key[: -len(DOWN) - 1]: tensor.shape[0] for key, tensor in state.items() if key.endswith(f".{DOWN}")}
    return LoraShape(ranks, {path: float(alphas.get(path, rank)) for path, rank in ranks.items()})


def refuse_halves(state: Mapping[str, Tensor]) -> None:
    """Raises StError where one of a layer's two matrices is missing, or their ranks differ."""
    for path, parts in by_layer(state).items():
        if not parts.keys() & set(PARTS):
            continue
        down, up = parts.get(DOWN), parts.get(UP)
        if down is None or up is None:
            raise StError(f"{path!r} has no {DOWN if down is None else UP}", why="an update is a product of two")
        if up.ndim < 2 or up.shape[1] != len(down):
            raise StError(
                f"'{path}.{UP}' has shape {tuple(up.shape)}, expected (outputs, {len(down)})",
                why=f"{DOWN} beside it has shape {tuple(down.shape)}",
            )


def recognise(tensors: Iterable[str], modules: Collection[str]) -> AdapterFormat:
    """The format that a file with these keys is in. modules: every module path of the denoiser."""
    from st.model.files.peft_layout import diffusers_format

    keys = list(tensors)
    if flat := _flat_prefix(keys, modules):
        return kohya_format(modules, flat)
    if any(key.startswith(("diffusion_model.", "model.diffusion_model.")) for key in keys):
        return comfyui_format()
    heads = Counter(_WRAPPERS.sub("", key).split(".")[0] for key in keys)
    children = {path.split(".")[0] for path in modules}
    prefixes = [head for head, _ in heads.most_common() if head not in children]
    return diffusers_format(prefixes[0] if prefixes else "")


def _flat_prefix(keys: Collection[str], modules: Collection[str]) -> str:
    """What begins names whose dots are underscores; '' where names have dots. "lora_" and a word if all is foreign."""
    flat = {path.replace(".", "_") for path in modules}
    stems = [stem for key in keys if "." not in (stem := split_file_key(key, keys)[0])]
    for stem in stems:
        words = stem.split("_")
        for count in range(1, len(words)):
            if "_".join(words[count:]) in flat:
                return "_".join(words[:count])
    return next(("_".join(stem.split("_")[:2]) for stem in stems if stem.startswith("lora_")), "")


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


def unwrapped(key: str) -> str:
    """A file's key without what wrappers add, by today's names of parts; those of before peft have others."""
    return _todays(_WRAPPERS.sub("", key))


def _todays(key: str) -> str:
    plain = key.replace(".default.", ".")
    return plain.replace(".lora.down.weight", f".{DOWN}").replace(".lora.up.weight", f".{UP}")


def unkeyed(tensors: Mapping[str, Tensor], path_of: Callable[[str], str | None], expected: str) -> Ours:
    """Our names and scales from a file's. path_of: our module path of what stands before a part, or None.

    Raises UnknownTensors; expected: how tensors are named in this format.
    """
    state, alphas, unknown = dict[str, "Tensor"](), dict[str, float](), []
    for key, tensor in tensors.items():
        stem, part = split_file_key(key, tensors)
        path = path_of(stem) if part else None
        if path is None:
            unknown.append(key)
        elif part == "alpha" and _is_low_rank(stem, tensors):
            alphas[path] = float(tensor)
        else:
            state[f"{path}.{part}"] = tensor
    refuse_unknown(unknown, len(tensors), expected)
    refuse_halves(state)
    for key in [key for key in state if key.endswith(f".{MAGNITUDE}")]:
        matrix = state[key.replace(MAGNITUDE, DOWN)].ndim == 2
        state[key] = state[key].reshape(-1) if matrix else state[key].reshape(1, -1, *[1] * (state[key].ndim - 2))
    return state, shape_of(state, alphas)


def refuse_unknown(unknown: Sequence[str], total: int, expected: str) -> None:
    """Raises UnknownTensors where there are any, or where there is nothing at all."""
    if unknown:
        raise UnknownTensors(unknown, total, why=f"in this format tensors are named {expected}")


@dataclass(frozen=True, slots=True)
class _ComfyUI(AdapterFormat):
    prefix: str
    rename: tuple[tuple[str, str], ...]
    reader: Reader

    def to_file(self, state: Mapping[str, Tensor], shape: LoraShape) -> tuple[dict[str, Tensor], dict[str, str]]:
        def name(path: str) -> str:
            return f"{self.prefix}.{_replaced(path, self.rename)}"

        return _keyed(state, shape, name, {}), {"format": "pt"}

    def from_file(
        self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
    ) -> tuple[dict[str, Tensor], LoraShape]:
        back = tuple((theirs, ours) for ours, theirs in self.rename)

        def path_of(stem: str) -> str | None:
            stem = stem.removeprefix("model.") if stem.startswith("model.diffusion_model.") else stem
            inside = stem.startswith(f"{self.prefix}.")
            return _replaced(stem.removeprefix(f"{self.prefix}."), back) if inside else None

        return unkeyed(tensors, path_of, f"{self.prefix}.<module>.{DOWN}")

    def caveats(self, planned: Sequence[Planned]) -> Sequence[str]:
        return self.reader.caveats(planned)


@dataclass(frozen=True, slots=True)
class _Kohya(AdapterFormat):
    modules: Callable[[], Iterable[str]] | Iterable[str]
    prefix: str
    reader: Reader

    def to_file(self, state: Mapping[str, Tensor], shape: LoraShape) -> tuple[dict[str, Tensor], dict[str, str]]:
        paths = {self._name(path): path for path in by_layer(state)}
        for path in by_layer(state):
            if paths[self._name(path)] != path:
                raise StError(
                    f"{path!r} and {paths[self._name(path)]!r} have one name in this format",
                    fix="leave one of them out of the adapter",
                )
        return _keyed(state, shape, self._name, _KOHYA_PARTS), {"format": "pt"}

    def from_file(
        self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
    ) -> tuple[dict[str, Tensor], LoraShape]:
        modules = self.modules() if callable(self.modules) else self.modules
        paths = {self._name(path): path for path in modules}
        return unkeyed(tensors, paths.get, f"{self.prefix}_<module>.lora_down.weight")

    def caveats(self, planned: Sequence[Planned]) -> Sequence[str]:
        return self.reader.caveats(planned)

    def _name(self, path: str) -> str:
        return f"{self.prefix}_{path.replace('.', '_')}"


_KOHYA_PARTS = {DOWN: "lora_down.weight", UP: "lora_up.weight"}
_OURS = {"lora_down.weight": DOWN, "lora_up.weight": UP, "dora_scale": MAGNITUDE}
_FILE_PARTS = sorted({*OTHER_PARTS, *PARTS} - {"ia3.weight"}, key=len, reverse=True)


def _keyed(
    state: Mapping[str, Tensor], shape: LoraShape, name: Callable[[str], str], parts: Mapping[str, str]
) -> dict[str, Tensor]:
    """Tensors under a file's names, with an alpha for each low-rank update."""
    import torch

    tensors = {}
    for path, mine in by_layer(state).items():
        for part, tensor in mine.items():
            # Theirs is (out, 1) for a matrix, (out, 1, 1, 1) for a convolution; peft's are (out,) and (1, out, 1, 1).
            shaped = tensor.reshape(-1, *[1] * (mine[DOWN].ndim - 1)) if part == MAGNITUDE else tensor
            theirs = {MAGNITUDE: "dora_scale", "ia3.weight": "weight"}.get(part, part)
            tensors[f"{name(path)}.{parts.get(part, theirs)}"] = shaped
    return tensors | {f"{name(path)}.alpha": torch.tensor(alpha) for path, alpha in shape.alphas.items()}


def split_file_key(key: str, tensors: Collection[str]) -> tuple[str, str]:
    """(what stands before the part, the part by our name) of a file's key; '' for a part that is none."""
    key = _todays(key)
    end = next((one for one in _FILE_PARTS if key.endswith(f".{one}")), "")
    stem = key[: -len(end) - 1]
    if not end and key.endswith(".weight") and f"{key.removesuffix('.weight')}.on_input" in tensors:
        return key.removesuffix(".weight"), "ia3.weight"
    return stem, _OURS.get(end, end) if _is_low_rank(stem, tensors) else end


def _is_low_rank(stem: str, tensors: Collection[str]) -> bool:
    """Whether a layer's update is two matrices and nothing between them."""
    if f"{stem}.lora_mid.weight" in tensors:
        return False
    ends = (DOWN, UP, "lora_down.weight", "lora_up.weight", "lora.down.weight", "lora.up.weight")
    return any(f"{stem}.{end}" in tensors for end in (*ends, "lora_A.default.weight"))


def _replaced(path: str, rename: Sequence[tuple[str, str]]) -> str:
    for old, new in rename:
        if path == old or path.startswith(f"{old}."):
            return new + path[len(old) :]
    return path
