"""What a run file says about the adapter, and which settings each algorithm has."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from st import Options

Scalar = bool | int | float | str

_SIZE = frozenset({"rank", "alpha"})
_MATRIX = _SIZE | {"use_scalar", "use_dora", "dropout", "module_dropout"}
_ROTATION = frozenset({"rank", "constraint", "rescaled", "module_dropout"})

USES: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "lokr": _MATRIX | {"factor", "full_matrix", "decompose_both"},
        "loha": _MATRIX | {"use_tucker", "rank_dropout"},
        "locon": _MATRIX | {"use_tucker", "rank_dropout"},
        "glora": _SIZE | {"use_scalar", "dropout", "module_dropout"},
        "dylora": _SIZE | {"block_size", "module_dropout"},
        "full": frozenset({"rank_dropout", "module_dropout"}),
        "diag-oft": _ROTATION,
        "boft": _ROTATION,
        "ia3": frozenset({"on_input", "module_dropout"}),
        "norm": frozenset({"module_dropout"}),
    }
)
"""The settings that each algorithm of the library obeys."""

REBUILDING = frozenset({"full", "diag-oft", "boft", "dylora", "norm"})
"""Algorithms that compute a layer's whole weight anew, and so lose what the weight's own precision does not hold."""

_WITHOUT_EFFECT_ON_WHOLE = frozenset({"rank", "alpha", "decompose_both"})


class Algorithm(Options):
    """How one layer learns."""

    algo: Literal["lokr", "loha", "locon", "glora", "dylora", "full", "diag-oft", "boft", "ia3", "norm"] = "lokr"
    """What is added to a layer: lokr a Kronecker product, loha a Hadamard product, locon a product of two (LoRA),
    glora one beside and one behind the weight, dylora one that works at every lower rank, full a whole weight;
    diag-oft and boft rotate its outputs, ia3 scales them, norm is for normalisations with weights."""
    rank: int = Field(16, ge=1)
    """Rank of the factors. For diag-oft and boft the size of the rotated blocks, or the closest that divides."""
    alpha: float | None = Field(None, gt=0)
    """Numerator of the update's scale, alpha / rank. By default the rank, which makes the scale 1."""
    factor: int = Field(-1, ge=-1)
    """lokr: size of the smaller factor; -1 is as square as possible. Smaller means more weights."""
    full_matrix: bool = False
    """lokr: keep both factors whole, whatever the rank is."""
    decompose_both: bool = False
    """lokr: the smaller factor is a product too, where the rank is less than half of it."""
    block_size: int = Field(4, ge=1)
    """dylora: ranks that are added at a time; it must divide the rank."""
    constraint: float = Field(0.0, ge=0)
    """diag-oft, boft: largest norm of the rotation, per output; 0 is none."""
    rescaled: bool = False
    """diag-oft, boft: learn a scale of each output as well."""
    on_input: bool = False
    """ia3: scale the inputs instead of the outputs."""
    use_tucker: bool = False
    """loha, locon: take kernels larger than 1 apart as well, which makes convolutions smaller."""
    use_scalar: bool = False
    """lokr, loha, locon, glora: begin with a learned scale of 0 instead of a factor of 0."""
    use_dora: bool = False
    """lokr, loha, locon: learn each output's magnitude apart from its direction (arXiv:2402.09353)."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """lokr, loha, locon, glora: fraction of the update's outputs that are left out."""
    rank_dropout: float = Field(0.0, ge=0, lt=1)
    """loha, full: fraction of the update's rows that are left out; locon: of its ranks."""
    module_dropout: float = Field(0.0, ge=0, lt=1)
    """Fraction of the calls of a layer that do without its update."""

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        moot = [name for name in self._changed() if name not in USES[self.algo]]
        if moot:
            raise ValueError(
                f"algo = {self.algo!r} has no {', '.join(moot)}; leave {'it' if len(moot) == 1 else 'them'} out"
            )
        if self.algo == "dylora" and self.rank % self.block_size:
            raise ValueError(f"block_size = {self.block_size} does not divide rank = {self.rank}")
        if self.full_matrix and (moot := [name for name in self._changed() if name in _WITHOUT_EFFECT_ON_WHOLE]):
            raise ValueError(f"full_matrix keeps both factors whole; leave out {', '.join(moot)}")
        if self.use_dora and self.dropout:
            raise ValueError("dropout has no effect beside use_dora; set one of them")
        return self

    @property
    def rebuilds(self) -> bool:
        """Whether the layer's whole weight is computed anew in each step."""
        return self.algo in REBUILDING or self.use_dora or (self.algo == "ia3" and not self.on_input)

    def settings(self) -> dict[str, Any]:
        """What the algorithm obeys, by name."""
        return {name: getattr(self, name) for name in sorted(USES[self.algo])}

    def replaced(self, changes: Mapping[str, object]) -> Algorithm:
        """Other settings, and for the rest these, as far as the new algorithm has them. Raises ValidationError."""
        uses = USES.get(str(changes.get("algo", self.algo)), frozenset())
        uses -= _WITHOUT_EFFECT_ON_WHOLE if changes.get("full_matrix") else frozenset()
        kept = {name: getattr(self, name) for name in self._changed() if name in uses}
        return Algorithm.model_validate({"algo": self.algo, **kept, **changes})

    def _changed(self) -> list[str]:
        """Settings of the algorithm that are not at their default, whoever wrote them: a saved run names every one."""
        fields = Algorithm.model_fields
        return [name for name in fields if name != "algo" and getattr(self, name) != fields[name].default]


class LycorisOptions(Algorithm):
    """The LyCORIS library's adapters (Yeh et al. 2023, arXiv:2309.14859): one algorithm, or others for some layers."""

    targets: tuple[str, ...] = ()
    """Layers that learn, by the end of their path; * stands for anything. Empty: the family's choice."""
    exclude: tuple[str, ...] = ()
    """Layers that do not learn after all."""
    layers: dict[str, dict[str, Scalar]] = Field(default_factory=dict)
    """Other settings for some layers, by the end of their path: any of those above. The last that names a layer counts;
    layers that are named only here learn too."""
    preset: str = ""
    """File of LyCORIS settings (lycoris_config.json) that says all of the above."""
    init_norm: float = Field(0.0, ge=0)
    """lokr with whole factors: begin with noise like the layer's own weight, times this (1e-3), instead of without any
    change."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Precision of the trained weights."""
    base: Literal["auto", "precision", "fp32"] = "auto"
    """Precision that the frozen weights are kept in: auto is fp32 where an algorithm computes whole weights (full,
    diag-oft, boft, dylora, ia3 on outputs, norm, use_dora), else the run's."""
    start: str = ""
    """LyCORIS file (.safetensors) to go on from. Algorithms, ranks and layers are the file's."""
    format: str | tuple[str, ...] = ""
    """Layout of the adapter file, or several: adapter.safetensors in the first, adapter-<layout> in the others. Those
    of the family, and lycoris, the library's own. Empty: the family's first whose readers know all of it, else
    lycoris."""

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> Self:
        written = [name for name in ("layers", "exclude", "targets") if getattr(self, name)]
        written += self._changed() + (["algo"] if self.algo != "lokr" else [])
        if self.start:
            written += [name for name in ("preset", "init_norm") if getattr(self, name)]
        if (self.start or self.preset) and written:
            source = "start" if self.start else "preset"
            raise ValueError(f"{source} takes it from the file; leave out {', '.join(written)}")
        for pattern in self.layers:
            try:
                self.of(pattern)
            except ValidationError as error:
                raise ValueError(f"layers.{pattern!r}: {_first(error)}") from error
        return self

    @property
    def formats(self) -> tuple[str, ...]:
        """Each layout that is asked for, once."""
        return tuple(dict.fromkeys((self.format,) if isinstance(self.format, str) else self.format))

    def default(self) -> Algorithm:
        """The settings of layers that ``layers`` does not name."""
        return Algorithm(**{"algo": self.algo, **self.settings()})

    def of(self, pattern: str) -> Algorithm:
        """The settings of the layers that a key of ``layers`` names."""
        return self.default().replaced(self.layers[pattern])


def _first(error: ValidationError) -> str:
    found = error.errors()[0]
    where = ".".join(map(str, found["loc"]))
    message = found["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message
