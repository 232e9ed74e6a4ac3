"""LycorisAdapter: modules of the library as the part of a denoiser that learns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st import Adapter, Planned, Problem, Reader, StError, kohya_format
from st.model.adapters.adapter import NO_FORMATS, restore
from st.model.adapters.adapter_start import start_problems
from st.randomness import keyed
from st_lycoris.names import LIBRARY, planned, start_rebuilds
from st_lycoris.options import USES, Algorithm, LycorisOptions
from st_lycoris.preset import read_preset

if TYPE_CHECKING:
    import torch
    from lycoris.modules import LycorisBaseModule  # type: ignore[import-untyped]
    from torch import Tensor, nn

    from st import ModelFamily
    from st.model.files.formats import AdapterFormat

    ParamGroup = dict[str, Any]


EVERYTHING = Reader("the library", frozenset(USES))


class LycorisAdapter(Adapter):
    """Updates beside frozen layers, of the library's algorithms. The denoiser's own weights stay as they are."""

    exports_base = False

    def __init__(self, options: LycorisOptions) -> None:
        self.options = options
        self._settings: dict[str, Algorithm] = {}
        self._formats: Mapping[str, AdapterFormat] = NO_FORMATS
        self._dropped: list[str] = []

    @property
    def needs_whole(self) -> str:
        return "computes whole weights of layers anew" if self._rebuilds() else ""

    def base_dtype(self, precision: torch.dtype) -> torch.dtype:
        import torch

        whole = self.options.base == "fp32" or (self.options.base == "auto" and self._rebuilds())
        return torch.float32 if whole else precision

    def problems(self, family: ModelFamily[Any]) -> Sequence[Problem]:
        from st.model.files.adapter_file import layout_problems

        found = list(start_problems(self.options.start))
        try:
            asked = self._planned(family.adapter_targets())
        except StError as error:
            return [*found, Problem("adapter.preset", error.what, error.why, error.fix)]
        formats = self._known(family.adapter_formats())
        return [*found, *layout_problems(filter(None, self.options.formats), formats, asked)]

    def caveats(self, family: ModelFamily[Any]) -> Sequence[str]:
        from st.model.files.adapter_file import layout_caveats

        asked = self._planned(family.adapter_targets())
        formats = self._known(family.adapter_formats())
        return layout_caveats(self._layouts(formats, asked), formats, asked)

    def attach(
        self, denoiser: nn.Module, targets: Sequence[str], formats: Mapping[str, AdapterFormat] = NO_FORMATS
    ) -> Sequence[ParamGroup]:
        import torch

        from st.model.files.adapter_file import try_layouts
        from st_lycoris import files
        from st_lycoris.modules import install, modules

        seed = torch.initial_seed()
        with torch.random.fork_rng(devices=[]):
            made = self._started(denoiser, formats) if self.options.start else self._made(denoiser, targets, seed)
        layers = {path: denoiser.get_submodule(path) for path in made}
        made_on = {path: (layers[path], module) for path, module in made.items()}
        config = files.config_of(self._settings)
        self._formats = files.layouts(formats, list(made), config)
        names = self._layouts(self._formats, self._exactly())
        try_layouts(names, self._formats, files.portable(made_on))
        if "diffusers" in names:
            files.refuse_unlike_diffusers(self._formats, made_on)
        denoiser.requires_grad_(False)
        for path, module in made.items():
            install(layers[path], module, {"fp32": torch.float32, "bf16": torch.bfloat16}[self.options.dtype])
        parameters = [one for _, module in modules(denoiser).values() for one in module.parameters()]
        self.note = self._note(list(made.values()), sum(one.numel() for one in parameters))
        if self._dropped:
            self.note += f"; {len(self._dropped)} differences of biases in the file are left out"
        return [{"params": parameters, "name": "lycoris"}]

    def state(self, denoiser: nn.Module) -> Mapping[str, Tensor]:
        from st_lycoris.modules import CHILD, modules

        return {
            f"{path}.{CHILD}.{name}": parameter
            for path, (_, module) in modules(denoiser).items()
            for name, parameter in module.named_parameters()
        }

    def load(self, denoiser: nn.Module, state: Mapping[str, Tensor]) -> None:
        restore(self.state(denoiser), state, "the adapter")

    def export(
        self, family: ModelFamily[Any], denoiser: nn.Module, directory: Path, metadata: Mapping[str, str]
    ) -> Path:
        from st.model.adapters.architecture import adapter_facts
        from st.model.files.adapter_file import write_layouts
        from st_lycoris import files
        from st_lycoris.modules import modules

        facts = adapter_facts(family, "lora") if metadata else {}
        told = {**metadata, **facts, **({"ss_network_module": "lycoris.kohya"} if facts else {})}
        names = self._layouts(self._formats, self._exactly())
        if LIBRARY in names:
            files.write_config(directory, files.config_of(self._settings))
        return write_layouts(directory, names, self._formats, files.portable(modules(denoiser)), told)[0]

    @contextmanager
    def disabled(self, denoiser: nn.Module) -> Iterator[None]:
        from st_lycoris.modules import modules

        found = list(modules(denoiser).values())
        for layer, module in found:
            layer.forward = module.org_forward
        try:
            yield
        finally:
            for layer, module in found:
                layer.forward = module.forward

    def _rebuilds(self) -> bool:
        options = self.options
        if options.start:
            return start_rebuilds(options.start)
        if options.preset:
            return read_preset(options.preset).rebuilds
        return options.default().rebuilds or any(options.of(pattern).rebuilds for pattern in options.layers)

    def _known(self, formats: Mapping[str, AdapterFormat]) -> dict[str, AdapterFormat]:
        """Formats by name, as they are known without the denoiser."""
        return {**formats, LIBRARY: kohya_format((), LIBRARY, EVERYTHING)}

    def _layouts(self, formats: Mapping[str, AdapterFormat], asked: Sequence[Planned]) -> list[str]:
        """The formats that are written: those that were named, else the first whose readers know all of it."""
        from st.model.files.readers import Slight

        if self.options.formats != ("",):
            return list(self.options.formats)
        fits = (
            name
            for name, one in formats.items()
            if not one.refusals(asked) and all(isinstance(said, Slight) for said in one.caveats(asked))
        )
        return [next(fits, LIBRARY) if asked else LIBRARY]

    def _exactly(self) -> list[Planned]:
        """What is written of the layers that learn, by their paths."""
        paths: dict[Algorithm, list[str]] = {}
        for path, settings in self._settings.items():
            paths.setdefault(settings, []).append(path)
        return [planned(settings, found) for settings, found in paths.items()]

    def _planned(self, targets: Sequence[str]) -> list[Planned]:
        """Nothing where a file says what is trained. Raises StError for a preset that cannot be read."""
        options = self.options
        if options.start:
            return []
        if options.preset:
            return [planned(one, ()) for one in read_preset(options.preset).algorithms]
        named = [planned(options.of(pattern), (pattern,)) for pattern in options.layers]
        return [planned(options.default(), options.targets or targets), *named]

    def _started(self, denoiser: nn.Module, formats: Mapping[str, AdapterFormat]) -> dict[str, LycorisBaseModule]:
        from st_lycoris.files import read_start
        from st_lycoris.modules import settings_of

        made, self._dropped = read_start(self.options.start, denoiser, formats)
        self._settings = {path: settings_of(module) for path, module in made.items()}
        return made

    def _made(self, denoiser: nn.Module, targets: Sequence[str], seed: int) -> dict[str, LycorisBaseModule]:
        """Each layer's begin depends on the run's seed and the layer's path alone, whatever else was drawn before."""
        import torch

        from st_lycoris.modules import build, perturb, refuse_unreadable

        preset = self.options.preset
        self._settings = read_preset(preset).layers(denoiser) if preset else self._named(denoiser, targets)
        made: dict[str, LycorisBaseModule] = {}
        checked = set()
        for path, settings in self._settings.items():
            layer = denoiser.get_submodule(path)
            torch.default_generator.manual_seed(keyed(seed, 0, path))
            made[path] = module = build(path, layer, settings)
            if self.options.init_norm and settings.algo == "lokr":
                perturb(path, layer, module, self.options.init_norm)
            # Layers of one size with one kind of settings come back alike.
            alike = (type(layer), getattr(module, "shape", ()), settings)
            if alike not in checked:
                refuse_unreadable(path, layer, module)
                checked.add(alike)
        if self.options.init_norm and not any(one.algo == "lokr" for one in self._settings.values()):
            raise StError("adapter.init_norm is for lokr, which no layer has here", fix="leave it out")
        return made

    def _named(self, denoiser: nn.Module, targets: Sequence[str]) -> dict[str, Algorithm]:
        from st.model.adapters.targets import is_named, match_modules
        from st_lycoris.modules import LAYERS, NORMS

        options, settings = self.options, dict[str, Algorithm]()
        for patterns, one in (
            (options.targets or targets, options.default()),
            *(([pattern], options.of(pattern)) for pattern in options.layers),
        ):
            kinds = NORMS if one.algo == "norm" else LAYERS
            settings |= dict.fromkeys(match_modules(denoiser, patterns, kinds), one)
        for pattern in options.exclude:
            if not any(is_named(path, pattern) for path in settings):
                raise StError(f"adapter.exclude = {pattern!r} names no layer that would learn", fix="leave it out")
        order = [path for path, _ in denoiser.named_modules() if path in settings]
        chosen = [path for path in order if not any(is_named(path, one) for one in options.exclude)]
        if not chosen:
            raise StError("adapter.exclude leaves no layer that learns")
        return {path: settings[path] for path in chosen}

    def _note(self, made: Sequence[LycorisBaseModule], weights: int) -> str:
        from st_lycoris.modules import name_of

        counts = Counter(name_of(module) for module in made).most_common()
        layers = [f"{name} on {count} layer{'s' * (count > 1)}" for name, count in counts]
        note = f"LyCORIS: {', '.join(layers)}: {weights:,} weights learn"
        if self.options.base == "auto" and self._rebuilds():
            note += "; the frozen weights are kept in fp32, because whole weights are computed (adapter.base)"
        return note
