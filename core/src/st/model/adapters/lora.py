"""LoRA: low-rank adapters, through peft."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from st.errors import Problem, StError
from st.model.adapters.adapter import ADAPTER, NO_FORMATS, Adapter, is_plain, restore
from st.model.adapters.lora_init import fixed_draws, refuse_unusual
from st.model.files.formats import DOWN, MAGNITUDE, UP, LoraShape
from st.options import Options

if TYPE_CHECKING:
    from torch import Tensor, nn

    from st.model.family import ModelFamily
    from st.model.files.formats import AdapterFormat
    from st.model.files.readers import Planned
    from st.registrar import Registrar

    ParamGroup = dict[str, Any]

PEFT_ADAPTER = "default"
START = ".start"
"""Ends the names of the weights that an adapter began with, where its base was changed to make room for them."""


class LoraOptions(Options):
    """A low-rank update beside each chosen layer: W + alpha / rank * B A. Hu et al. 2021, arXiv:2106.09685."""

    rank: int = Field(default=16, ge=1)
    """Rank of the update. Memory and capacity grow in proportion."""
    alpha: float | None = Field(default=None, gt=0)
    """Numerator of the update's scale, alpha / rank. By default the rank, which makes the scale 1."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Fraction of a layer's inputs that its update does not see in a step."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(rank), so that large ranks learn as fast as small ones (arXiv:2312.03732)."""
    use_dora: bool = False
    """Learn each output's magnitude apart from its direction (arXiv:2402.09353). Slower and often better."""
    init: str = Field(default="default", pattern=r"^(default|gaussian|orthogonal|olora|pissa|pissa_niter_\d+|loftq)$")
    """How A and B begin: default, gaussian and orthogonal at random, without changing the model; pissa, pissa_niter_<n>
    (a faster pissa, of n iterations) and olora with the main directions of the layer's own weights; loftq with what a
    [quantizer] rounds away (arXiv:2310.08659)."""
    targets: tuple[str, ...] = ()
    """Layers that get an update, by the end of their path; * stands for anything. Empty: the family's choice."""
    rank_pattern: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Other ranks for some layers, by the end of their path."""
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Other alphas for some layers, by the end of their path."""
    dtype: Literal["fp32", "bf16"] = "fp32"
    """Precision of the trained weights."""
    start: str = ""
    """Adapter file (.safetensors) to go on from. Rank, alpha and targets are the file's."""
    format: str | tuple[str, ...] = ""
    """Layout of the adapter file that is written, or several: adapter.safetensors in the first, adapter-<layout> in the
    others. Empty: the family's first."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        fixed = {"rank", "alpha", "use_rslora", "use_dora", "init", "targets", "rank_pattern", "alpha_pattern"}
        if self.start and (given := fixed & self.model_fields_set):
            raise ValueError(f"start takes it from the file; leave out {', '.join(sorted(given))}")
        if self.use_dora and self.changes_base:
            raise ValueError(f"use_dora does not go with init = {self.init!r}; use init = 'default'")
        if self.init == "orthogonal" and any(rank % 2 for rank in (self.rank, *self.rank_pattern.values())):
            raise ValueError("init = 'orthogonal' needs even ranks")
        return self

    @property
    def formats(self) -> tuple[str, ...]:
        """Each layout that is asked for, once."""
        return tuple(dict.fromkeys((self.format,) if isinstance(self.format, str) else self.format))

    @property
    def changes_base(self) -> bool:
        """Whether the layer's own weights give something up that the update begins with, or have lost it already."""
        return self.init.startswith(("pissa", "olora", "loftq"))


class LoraAdapter(Adapter):
    """Low-rank updates. The denoiser's own weights stay as they are, unless the init moves a part of them into it."""

    exports_base = False

    def __init__(self, options: LoraOptions) -> None:
        self.options = options
        self.begins_as_base = not (options.start or options.changes_base or options.use_dora)
        self._starts: dict[str, Tensor] = {}
        self._unrounded: dict[str, Tensor] = {}

    def begin(self, family: ModelFamily[Any], denoiser: nn.Module) -> None:
        if self.options.init == "loftq":
            from st.model.adapters.loftq import keep_weights
            from st.model.adapters.targets import match_modules

            paths = match_modules(denoiser, self.options.targets or family.adapter_targets())
            self._unrounded = keep_weights(denoiser, paths)

    @property
    def needs_whole(self) -> str:
        return f"puts weights in place of others (init = {self.options.init!r})" if self.options.changes_base else ""

    def problems(self, family: ModelFamily[Any]) -> Sequence[Problem]:
        from st.model.adapters.adapter_start import start_problems
        from st.model.files.adapter_file import layout_problems

        formats = family.adapter_formats()
        found = list(start_problems(self.options.start))
        return [*found, *layout_problems(self._layouts(formats), formats, self._planned(family))]

    def caveats(self, family: ModelFamily[Any]) -> Sequence[str]:
        from st.model.files.adapter_file import layout_caveats

        formats = family.adapter_formats()
        return layout_caveats(self._layouts(formats), formats, self._planned(family))

    def attach(
        self, denoiser: nn.Module, targets: Sequence[str], formats: Mapping[str, AdapterFormat] = NO_FORMATS
    ) -> Sequence[ParamGroup]:
        import torch

        from st.model.adapters.adapter_start import read_start, untouched
        from st.model.adapters.casting import spare_casts
        from st.model.files.adapter_file import try_layouts

        start = read_start(self.options.start, denoiser, formats.values()) if self.options.start else None
        left = untouched(denoiser, targets, start[1]) if start else 0
        config = self._config_of(*start[:2]) if start else self._config(denoiser, targets)
        denoiser.requires_grad_(False)
        # peft draws the randomised SVD from torch's generator; a resumed run has to find the same directions.
        with fixed_draws() if self.options.init.startswith("pissa_niter") else nullcontext():
            _inject(denoiser, config)
        for layer in _layers(denoiser).values():
            layer.train(denoiser.training)
            if not self.options.dropout and PEFT_ADAPTER not in layer.lora_magnitude_vector:
                spare_casts(layer)
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[self.options.dtype]
        parameters = self._parameters(denoiser)
        if self.options.init == "loftq":
            self._make_up(denoiser)
        if self.options.changes_base:
            self._starts = {f"{name}{START}": tensor.detach().clone() for name, tensor in parameters.items()}
        for parameter in parameters.values():
            parameter.data = parameter.data.to(dtype)
            parameter.requires_grad_(True)
        if start:
            restore(parameters, start[0], f"an adapter like {self.options.start!r}")
        # The base gave up what A and B were before they were rounded to their dtype.
        self._move_base(denoiser, {name: tensor.to(dtype) for name, tensor in self._starts.items()})
        count = sum(parameter.numel() for parameter in parameters.values())
        ranks = sorted(set(_shape(denoiser).ranks.values()))
        rank = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]}-{ranks[-1]}"
        if formats:
            try_layouts(self._layouts(formats), formats, self.portable(denoiser))
        self.note = f"LoRA of rank {rank} on {len(_layers(denoiser))} layers: {count:,} weights learn"
        if start and start[2]:
            self.note += f"; {len(start[2])} whole differences and biases in it are left out"
        if left:
            self.note += f"; {left} other layers that this run would train are not in {self.options.start!r}"
        return [{"params": list(parameters.values()), "name": "lora"}]

    def state(self, denoiser: nn.Module) -> Mapping[str, Tensor]:
        return {**self._parameters(denoiser), **self._starts}

    def load(self, denoiser: nn.Module, state: Mapping[str, Tensor]) -> None:
        parameters = self._parameters(denoiser)
        starts = {name: tensor for name, tensor in state.items() if name.endswith(START)}
        if starts.keys() != self._starts.keys():
            raise StError(
                f"the stored adapter was not begun with init = {self.options.init!r}",
                fix="set adapter.init to what it was trained with",
            )
        restore(parameters, {name: tensor for name, tensor in state.items() if name not in starts}, "the adapter")
        self._move_base(denoiser, starts)

    def export(
        self, family: ModelFamily[Any], denoiser: nn.Module, directory: Path, metadata: Mapping[str, str]
    ) -> Path:
        from st.model.adapters.architecture import lora_facts
        from st.model.files.adapter_file import write_layouts

        formats = family.adapter_formats()
        state, shape = self.portable(denoiser)
        facts = {**metadata, **lora_facts(family, shape)} if metadata else {}
        return write_layouts(directory, self._layouts(formats), formats, (state, shape), facts)[0]

    def portable(self, denoiser: nn.Module) -> tuple[dict[str, Tensor], LoraShape]:
        """The adapter as it acts on untouched base weights: tensors by our names, and their scale.

        What began with a part of the base (A0, B0) becomes an update of twice the rank, B A - B0 A0.
        """
        import torch

        shape = _shape(denoiser)
        state = {name: tensor.detach() for name, tensor in self._parameters(denoiser).items()}
        if not self._starts:
            return state, shape
        for name, tensor in state.items():
            start = self._starts[f"{name}{START}"].to(tensor)
            state[name] = torch.cat([tensor, start]) if name.endswith(DOWN) else torch.cat([tensor, -start], dim=1)
        ranks = {path: 2 * rank for path, rank in shape.ranks.items()}
        return state, LoraShape(ranks, {path: 2 * alpha for path, alpha in shape.alphas.items()})

    @contextmanager
    def disabled(self, denoiser: nn.Module) -> Iterator[None]:
        if self._starts:
            with self._at_start(denoiser):
                yield
            return
        layers = list(_layers(denoiser).values())
        for layer in layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)

    @contextmanager
    def scaled(self, denoiser: nn.Module, factor: float) -> Iterator[None]:
        layers = list(_layers(denoiser).values())
        if self._starts or any(PEFT_ADAPTER in layer.lora_magnitude_vector for layer in layers):
            setting = f"init = {self.options.init!r}" if self._starts else "use_dora"
            raise StError(
                f"a LoRA with {setting} cannot be trained at another strength",
                why="it changes the layers that it belongs to, and does not only add to them",
                fix=f"leave adapter.{setting.split()[0]} out",
            )
        trained = [layer.scaling[PEFT_ADAPTER] for layer in layers]
        for layer, scale in zip(layers, trained, strict=True):
            layer.scaling[PEFT_ADAPTER] = scale * factor
        try:
            yield
        finally:
            for layer, scale in zip(layers, trained, strict=True):
                layer.scaling[PEFT_ADAPTER] = scale

    @contextmanager
    def _at_start(self, denoiser: nn.Module) -> Iterator[None]:
        """What the adapter began with: together with the changed base it is the untrained model, up to rounding."""
        parameters = self._parameters(denoiser)
        learned = {name: parameter.data for name, parameter in parameters.items()}
        # .data, not copy_: a graph that is waiting for its backward must not see its weights as modified.
        for name, parameter in parameters.items():
            parameter.data = self._starts[f"{name}{START}"].to(parameter)
        try:
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.data = learned[name]

    def _layouts(self, formats: Mapping[str, AdapterFormat]) -> list[str]:
        """The formats that are written, once each; the family's first where none is named."""
        return list(dict.fromkeys(name or next(iter(formats)) for name in self.options.formats or ("",)))

    def _planned(self, family: ModelFamily[Any]) -> list[Planned]:
        from st.model.files.readers import Planned

        extras = frozenset({"dora"} if self.options.use_dora else ())
        return [Planned("lora", extras, tuple(self.options.targets or family.adapter_targets()))]

    def _parameters(self, denoiser: nn.Module) -> dict[str, Any]:
        found = {}
        for path, layer in _layers(denoiser).items():
            found[f"{path}.{DOWN}"] = layer.lora_A[PEFT_ADAPTER].weight
            found[f"{path}.{UP}"] = layer.lora_B[PEFT_ADAPTER].weight
            if PEFT_ADAPTER in layer.lora_magnitude_vector:
                found[f"{path}.{MAGNITUDE}"] = layer.lora_magnitude_vector[PEFT_ADAPTER].weight
        return found

    def _config(self, denoiser: nn.Module, targets: Sequence[str]) -> Any:
        from peft import LoraConfig
        from torch import nn

        from st.model.adapters.targets import is_named, match_modules

        options = self.options
        paths = match_modules(denoiser, options.targets or targets)
        for pattern in (*options.rank_pattern, *options.alpha_pattern):
            if not any(is_named(path, pattern) for path in paths):
                raise StError(
                    f"no layer that learns is named {pattern!r}", fix="change adapter.rank_pattern or .alpha_pattern"
                )
        if options.changes_base and options.init != "loftq":
            refuse_unusual(denoiser, paths, options.init, nn.Linear)
        if options.use_dora and not all(is_plain(parameter) for parameter in denoiser.parameters()):
            raise StError(
                "adapter.use_dora needs weights that are not quantized", fix="set one of use_dora and [quantizer]"
            )
        return LoraConfig(
            r=options.rank,
            lora_alpha=options.rank if options.alpha is None else options.alpha,  # type: ignore[arg-type]
            lora_dropout=options.dropout,
            use_rslora=options.use_rslora,
            use_dora=options.use_dora,
            init_lora_weights=True if options.init in ("default", "loftq") else options.init,  # type: ignore[arg-type]
            target_modules=list(paths),
            rank_pattern=_by_path(paths, options.rank_pattern),
            alpha_pattern=self._alpha_pattern(paths),
        )

    def _alpha_pattern(self, paths: Sequence[str]) -> dict[str, float]:
        """alpha is the rank where it is not set, for a layer with another rank too."""
        followed = self.options.rank_pattern if self.options.alpha is None else {}
        return {**_by_path(paths, followed), **_by_path(paths, self.options.alpha_pattern)}

    def _config_of(self, state: Mapping[str, Tensor], shape: LoraShape) -> Any:
        from peft import LoraConfig

        rank, alpha = next(iter(shape.ranks.values())), next(iter(shape.alphas.values()))
        return LoraConfig(
            r=rank,
            lora_alpha=alpha,  # type: ignore[arg-type]
            lora_dropout=self.options.dropout,
            use_dora=any(name.endswith(MAGNITUDE) for name in state),
            target_modules=list(shape.ranks),
            rank_pattern={f"^{path}": one for path, one in shape.ranks.items() if one != rank},
            alpha_pattern={f"^{path}": one for path, one in shape.alphas.items() if one != alpha},
        )

    def _make_up(self, denoiser: nn.Module) -> None:
        """Begin with what the quantizer took from each layer."""
        from st.model.adapters.loftq import refuse_unquantized, rounded_away

        layers = _layers(denoiser)
        refuse_unquantized(self._unrounded, all(is_plain(one.get_base_layer().weight) for one in layers.values()))
        for path, layer in layers.items():
            if is_plain(layer.get_base_layer().weight):
                # Nothing was rounded away, and an update of two zeros would never learn.
                continue
            down, up = rounded_away(layer.get_base_layer(), self._unrounded[path], layer.r[PEFT_ADAPTER])
            layer.lora_A[PEFT_ADAPTER].weight.data = down.contiguous()
            layer.lora_B[PEFT_ADAPTER].weight.data = (up / layer.scaling[PEFT_ADAPTER]).contiguous()
        self._unrounded = {}

    def _move_base(self, denoiser: nn.Module, starts: Mapping[str, Tensor]) -> None:
        """Give the base what these starts leave of it, where it was left by others: another machine's, or unrounded."""
        import torch

        if self.options.init == "loftq":
            # The base is as the quantizer left it, whatever the update began with.
            self._starts = {name: starts[name].to(mine.device) for name, mine in self._starts.items()}
            return
        if all(torch.equal(starts[name].to(mine), mine) for name, mine in self._starts.items()):
            return
        for path, layer in _layers(denoiser).items():
            down, up = f"{path}.{DOWN}{START}", f"{path}.{UP}{START}"
            weight: Tensor = layer.get_base_layer().weight
            mine = self._starts[up].float() @ self._starts[down].float()
            theirs = starts[up].to(mine) @ starts[down].to(mine)
            weight.data = (weight.data.float() + layer.scaling[PEFT_ADAPTER] * (mine - theirs)).to(weight.dtype)
        self._starts = {name: starts[name].to(mine.device) for name, mine in self._starts.items()}


def register(register: Registrar) -> None:
    """The adapter that a run trains when it names none."""
    register.add(ADAPTER, "lora", LoraAdapter, LoraOptions)


def _inject(denoiser: nn.Module, config: Any) -> None:
    from diffusers.loaders.peft import PeftAdapterMixin
    from peft import inject_adapter_in_model

    if isinstance(denoiser, PeftAdapterMixin):
        denoiser.add_adapter(config, adapter_name=PEFT_ADAPTER)
    else:
        inject_adapter_in_model(config, denoiser, PEFT_ADAPTER)


def _layers(denoiser: nn.Module) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {path: module for path, module in denoiser.named_modules() if isinstance(module, LoraLayer)}


def _shape(denoiser: nn.Module) -> LoraShape:
    """alpha as the layers apply it: scale times rank, whatever it was computed from."""
    layers = _layers(denoiser)
    ranks = {path: layer.r[PEFT_ADAPTER] for path, layer in layers.items()}
    return LoraShape(
        ranks, {path: float(layer.scaling[PEFT_ADAPTER] * layer.r[PEFT_ADAPTER]) for path, layer in layers.items()}
    )


def _by_path(paths: Sequence[str], patterns: Mapping[str, Any]) -> dict[str, Any]:
    """Values by whole path, as peft's own patterns; the last pattern that names a path wins."""
    from st.model.adapters.targets import is_named

    return {f"^{path}": value for pattern, value in patterns.items() for path in paths if is_named(path, pattern)}
