"""Assembly: from a run file and a command line to active plugins and checked settings, without importing torch."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from st.errors import ProblemsFound, StError
from st.options import Options
from st.plugins.activation import TAKE_AWAY, Activation, Plugins, bare_name, plugin_names, scheme_of
from st.plugins.catalogue import Catalogue
from st.plugins.loading import is_local
from st.reading.reading import Reader
from st.reading.runfile import ENVIRONMENT_PREFIX, Location, RunFile, read
from st.redaction import Redaction, holds_credentials
from st.registrar import Choice, Strategy
from st.settings.config import (
    ABSENT_IS_OFF,
    CHOICES,
    SECTIONS,
    RunConfig,
    RunOptions,
    ValidatorOptions,
    section_names,
    section_options,
)
from st.settings.effects import problems as without_effect
from st.settings.together import disagreements
from st.spelling import closest, did_you_mean, either
from st.train.updates.groups import GroupOptions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from st.data.dataset import DatasetConfig
    from st.model.family import ModelFamily
    from st.registrar import Registrar


def assemble(
    path: Path | None,
    plugins: Sequence[str] = (),
    overrides: Sequence[str] = (),
    *,
    environment: Mapping[str, str] | None = None,
    training: bool = False,
) -> tuple[RunConfig, Plugins]:
    """Read a run file, activate its plugins and check every setting.

    plugins: as ``--plugins`` takes them. overrides: as ``--set`` takes them. environment: this process's where None.
    training: whether the run must say how long to train, on what and where to write. Raises ProblemsFound with all
    that is wrong.
    """
    run_file = read(path, overrides, os.environ if environment is None else environment)
    return Assembly(run_file, Catalogue.scan()).assemble(plugins, training=training)


def assemble_saved(settings: Path, *, trust: bool = False) -> tuple[RunConfig, Plugins]:
    """The run that a folder's ``run.json`` describes: ``ST_`` variables change nothing, ``{env:NAME}`` is filled in.

    trust: load plugins from files too; the folder may be of somebody else, who chose what they do. Raises
    ProblemsFound, for instance where a plugin is not installed any more.
    """
    if not trust:
        _refuse_files(settings)
    plain = {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)}
    return assemble(settings, environment=plain)


def _refuse_files(settings: Path) -> None:
    listed = read(settings).data.get("plugins")
    files = [name for name in listed if isinstance(name, str) and is_local(name)] if isinstance(listed, list) else []
    if files:
        raise StError(
            f"{str(settings)!r} names a plugin that is a file: {files[0]!r}",
            why="loading it runs whatever is written there, and a saved run may come from somebody else",
            fix="look at that file, then say --trust",
        )


def registered(plugins: Sequence[str]) -> Registrar:
    """What the core and these plugins bring, without a run. Raises ProblemsFound."""
    assembly = Assembly(read(None, (), {}), Catalogue.scan())
    names, _ = plugin_names((), plugins)
    for name in assembly.activation.register(names):
        assembly.catalogue.find(bare_name(name))
    if assembly.reader.problems:
        raise ProblemsFound(assembly.reader.problems)
    return assembly.activation.registrar


STRATEGIES_IN_SECTIONS: dict[str, dict[str, str]] = {
    "ranks": {"engine": "engine"},
    "validation": {"sampler": "sampler"},
}
"""Options of the core's sections that name a strategy; "auto" leaves it to the section."""


class Assembly:
    """One run file on its way to a RunConfig."""

    def __init__(self, run_file: RunFile, catalogue: Catalogue) -> None:
        self.run_file, self.catalogue = run_file, catalogue
        self.reader = Reader(run_file)
        self.activation = Activation(catalogue, self.reader, [*RunOptions.model_fields, *section_names()])

    def assemble(self, added: Sequence[str], *, training: bool = False) -> tuple[RunConfig, Plugins]:
        """Activate the listed and the added plugins and read every section. Raises ProblemsFound."""
        listed = self.reader.at(("plugins",))
        listed = [name for name in listed if isinstance(name, str)] if isinstance(listed, list) else []
        names, gone = plugin_names(listed, added)
        self._refuse_typos(gone, [*listed, *names])
        plugins = self.activation.activate(names)
        config = self._config(names)
        self._refuse_unknown(gone)
        if training:
            self._require_training()
        if self.reader.problems or config is None or plugins is None:
            raise ProblemsFound(self.reader.problems, self.run_file.name)
        if problems := [*(without_effect(config) if training else ()), *disagreements(config, plugins)]:
            raise ProblemsFound(problems, self.run_file.name)
        return config, plugins

    def _refuse_typos(self, gone: Sequence[str], listed: Sequence[str]) -> None:
        """Refuse to take away what does not exist: the plugin that was meant would stay."""
        bare = [bare_name(name) for name in listed if not name.startswith(TAKE_AWAY)]
        for name in gone:
            if name not in (*listed, *bare) and not self.catalogue.kinds(bare_name(name)):
                what = f"{TAKE_AWAY}{name} takes nothing away: no plugin is named {name!r}."
                self.reader.problem(("plugins",), what, fix=did_you_mean(name, bare))

    def _config(self, names: Sequence[str]) -> RunConfig | None:
        top = {key: value for key, value in self.run_file.data.items() if key in RunOptions.model_fields}
        run = self.reader.options(RunOptions, (), top)
        sections: dict[str, Any] = {name: self._section(name) for name in SECTIONS if name != "cache"}
        sections["cache"], sections["cache_store"] = self._cache()
        sections |= {kind: self._choice(kind, default) for kind, default in CHOICES.items()}
        datasets, validators, groups = self._datasets(), list(self._validators()), tuple(self._groups())
        if sections["validation"] is not None and not sections["validation"].resolutions:
            sections["validation"] = _as_large_as(datasets, sections["validation"])
        families = self.activation.families
        if run is None or self.reader.problems or not families:
            return None
        return RunConfig(
            **{**dict(run), "plugins": tuple(names)},
            **sections,
            model=self.activation.options[families[0].name],
            groups=groups,
            datasets=tuple(datasets),
            validators=tuple(validators),
            plugin_options=self.activation.options,
            origins={location: origin.text for location, origin in self.run_file.origins.items()},
            placeholders=self.run_file.placeholders,
            redaction=Redaction.of(self.run_file.variables),
        )

    def _section(self, name: str) -> Any:
        if name in ABSENT_IS_OFF and name not in self.run_file.data:
            return None
        options = self.reader.options(section_options(name), (name,))
        for key, kind in STRATEGIES_IN_SECTIONS.get(name, {}).items():
            chosen = self.reader.at((name, key))
            if isinstance(chosen, str) and chosen != "auto":
                self._lookup(kind, chosen, (name, key))
        return options

    def _cache(self) -> tuple[Options | None, Choice | None]:
        """``[cache]``: its own options, and the backend that its url names with those that it takes."""
        own_class, table = section_options("cache"), self.reader.table(("cache",))
        url = table.get("url")
        scheme = scheme_of(url) if url and isinstance(url, str) else "file"
        self._refuse_credentials(("cache", "url"))
        registrar = self.activation.registrar
        backend: Any = (registrar.get("backend", scheme) or registrar.lookup("backend", "file")).build
        store_class: type[Options] | None = backend.StoreOptions
        if store_class is None:
            self.reader.refuse(("cache", "url"), f"{scheme!r} only reads data sets; a cache is written to.")
        if store_class is None or scheme in self.activation.failed:
            return None, None
        own = {key: value for key, value in table.items() if key not in store_class.model_fields}
        rest = {key: value for key, value in table.items() if key in store_class.model_fields}
        store = self.reader.options(store_class, ("cache",), rest)
        return (
            self.reader.options(own_class, ("cache",), own, others=tuple(store_class.model_fields)),
            Choice(scheme, store, backend.open_store) if store else None,
        )

    def _choice(self, kind: str, default: str) -> Choice | None:
        if kind in ABSENT_IS_OFF and kind not in self.run_file.data:
            return None
        table = self.reader.table((kind,)) or self._family_default(kind)
        name = table.get("kind", default or self._default(kind))
        if not isinstance(name, str):
            self.reader.refuse((kind, "kind"), "must be text.")
            return None
        if not name:
            fix = f"There are: {', '.join(self.activation.registrar.names(kind))}."
            self.reader.problem((kind,), f"{self.run_file.place((kind, 'kind'))}: must be set.", fix=fix)
            return None
        strategy = self._lookup(kind, name, (kind, "kind"))
        if strategy is None:
            return None
        others = ("kind", "groups") if kind == "optimizer" else ("kind",)
        data = {key: value for key, value in table.items() if key not in others}
        if "kind" in table:
            data = self._of_kind(kind, strategy, data, others)
        options = self.reader.options(strategy.options, (kind,), data, others=others)
        return None if options is None else Choice(name, options, strategy.build)

    def _of_kind(self, kind: str, strategy: Strategy, data: dict[str, Any], others: Sequence[str]) -> dict[str, Any]:
        """The options of a section without those of another kind, which are refused as that."""
        own = (*strategy.options.model_fields, *others)
        strategies = [one for one in self.activation.registrar.strategies() if one.kind == kind]
        foreign = {}
        for key in data:
            having = [one.name for one in strategies if key in one.options.model_fields]
            if key not in own and having:
                foreign[key] = having
        for key, having in foreign.items():
            chosen = self.run_file.setting((kind, "kind"), strategy.name)
            place = self.run_file.place((kind, key))
            what = f"{place} is an option of {either(map(repr, having))}, not of the kind that is chosen."
            fix = "Take it out of the section, or choose one that has it."
            self.reader.problem((kind, key), what, why=f"Chosen by {chosen}", fix=fix)
        return {key: value for key, value in data.items() if key not in foreign}

    def _groups(self) -> Iterator[GroupOptions]:
        """``[[optimizer.groups]]``: weights that any optimizer treats otherwise than the rest."""
        tables = self.reader.table(("optimizer",)).get("groups", [])
        if not isinstance(tables, list):
            fix = "Write [[optimizer.groups]] with two brackets."
            self.reader.refuse(("optimizer", "groups"), "a run has a list of them.", fix=fix)
            return
        for index in range(len(tables)):
            group = self.reader.options(GroupOptions, ("optimizer", "groups", index))
            if group is not None:
                yield group

    def _validators(self) -> Iterator[tuple[ValidatorOptions, Choice]]:
        labels: set[str] = set()
        tables = self.reader.at(("validator",))
        if isinstance(tables, dict):
            fix = "Write [[validator]] with two brackets."
            self.reader.refuse(("validator",), "a run has a list of them.", fix=fix)
        for index in range(len(tables)) if isinstance(tables, list) else ():
            location = ("validator", index)
            table = self.reader.table(location)
            own = {key: value for key, value in table.items() if key in ValidatorOptions.model_fields}
            options = self.reader.options(ValidatorOptions, location, own)
            strategy = self._lookup("validator", options.kind, (*location, "kind")) if options else None
            if options is None or strategy is None:
                continue
            rest = {key: value for key, value in table.items() if key not in own}
            chosen = self.reader.options(strategy.options, location, rest, others=tuple(ValidatorOptions.model_fields))
            if options.label in labels:
                fix = 'Set name = "..." in one of them.'
                self.reader.refuse(location, f"another validator is called {options.label!r}.", fix=fix)
            labels.add(options.label)
            if chosen is not None:
                yield options, Choice(options.kind, chosen, strategy.build)

    def _family_default(self, kind: str) -> Mapping[str, Any]:
        """What the model family wants of a section that the run file does not have."""
        families = self.activation.families
        return families[0].instance.defaults.get(kind, {}) if families and kind not in self.run_file.data else {}

    def _default(self, kind: str) -> str:
        """The strategy of a run file that does not say, where it depends on the model family."""
        if kind != "density" or not self.activation.families:
            return "" if kind != "density" else "logit_normal"
        from st.diffusion.density import default_density

        family: ModelFamily[Any] = self.activation.families[0].instance
        return default_density(family.path)

    def _lookup(self, kind: str, name: str, location: Location) -> Any:
        registrar = self.activation.registrar
        found = registrar.get(kind, name)
        # A plugin that cannot be used might have brought it; that plugin's own problem is shown.
        if found is None and (not self.activation.failed or closest(name, registrar.names(kind))):
            try:
                registrar.lookup(kind, name)
            except StError as error:
                self.reader.refuse(
                    location, error.what, fix=self.catalogue.brings(kind, name, self.activation.names) or error.fix
                )
        return found

    def _datasets(self) -> list[DatasetConfig]:
        tables = self.reader.at(("dataset",))
        if tables is not None and not isinstance(tables, list):
            self.reader.refuse(
                ("dataset",), "a run has a list of data sets.", fix="Write [[dataset]] with two brackets."
            )
            return []
        found: dict[str, tuple[int, DatasetConfig]] = {}
        for index in range(len(tables)) if isinstance(tables, list) else ():
            dataset = self._dataset(index)
            if dataset is not None and dataset.name in found:
                other = found[dataset.name][0]
                what = f"{self.run_file.place(('dataset', index))}: dataset.{other} is named {dataset.name!r} too."
                self.reader.problem(("dataset", index), what, fix="Give one of them a name of its own: name = ...")
            elif dataset is not None:
                found[dataset.name] = (index, dataset)
        return [dataset for _, dataset in found.values()]

    def _dataset(self, index: int) -> DatasetConfig | None:
        from st.data.dataset import DatasetConfig, DatasetOptions

        location = ("dataset", index)
        table = self.reader.table(location)
        own = {key: value for key, value in table.items() if key in DatasetOptions.model_fields}
        options = self.reader.options(DatasetOptions, location, own)
        url = table.get("url")
        scheme = scheme_of(url) if isinstance(url, str) else "file"
        for key in table:
            # Masks and references lie at addresses too.
            self._refuse_credentials((*location, key))
        backend = self.activation.registrar.get("backend", scheme)
        if backend is None:
            return None
        rest = {key: value for key, value in table.items() if key not in own}
        backend_options = self.reader.options(
            backend.options, location, rest, others=tuple(DatasetOptions.model_fields)
        )
        if options is None or backend_options is None:
            return None
        return DatasetConfig(options=options, backend=backend_options, scheme=scheme)

    def _refuse_credentials(self, location: Location) -> None:
        address = self.reader.at(location)
        if isinstance(address, str) and holds_credentials(address):
            fix = "Leave them out; programs for this kind of address find them in the environment or their own files."
            self.reader.refuse(location, "holds credentials, which would be written into the run's folder.", fix=fix)

    def _refuse_unknown(self, gone: Sequence[str]) -> None:
        tables, settings = section_names(), list(RunOptions.model_fields)
        active = [*self.activation.names, *self.activation.failed, *gone]
        plugins = {*self.catalogue.names(), *(plugin.name for plugin in self.catalogue.known)}
        for key, value in self.run_file.data.items():
            if key in (*tables, *settings, *active):
                continue
            if not isinstance(value, dict):
                self.reader.unknown((key,), [*settings, *tables])
            elif key in plugins:
                what = f"{self.reader.heading((key,))} configures a plugin that is not active."
                self.reader.problem((key,), what, fix=f'Add "{key}" to plugins, or delete the section.')
            else:
                guess = did_you_mean(key, [*tables, *active, *plugins])
                what = f"{self.reader.heading((key,))} is neither a section nor an active plugin. {guess}"
                self.reader.problem((key,), what.rstrip())

    def _require_training(self) -> None:
        data, name = self.run_file.data, self.run_file.name or "settings"
        if "steps" in data and "epochs" in data:
            both = f"{self.run_file.setting(('steps',), data['steps'])} and epochs = {data['epochs']!r}"
            self.reader.problem(("steps",), f"{both}: give one of them.")
        if "steps" not in data and "epochs" not in data:
            self.reader.problem((), f"{name}: steps: must be set, or epochs.", fix="Write steps = 1000, or so.")
        if not data.get("output"):
            fix = 'Write output = "runs/first", or so.'
            self.reader.problem((), f"{name}: output: must be set.", why=_meaning("output"), fix=fix)
        if not data.get("dataset"):
            fix = 'Write [[dataset]], and url = "file:photos" below it, or so.'
            self.reader.problem((), f"{name}: [[dataset]]: there is none to train on.", fix=fix)


def _as_large_as(datasets: Sequence[DatasetConfig], validation: Any) -> Any:
    """[validation] that renders at the size of what is trained on first; as it is where that is sounds."""
    first = next((one for one in datasets if one.options.role == "train"), None)
    if first is None or first.backend.model_dump().get("media") == "audio":
        return validation
    edge = round(first.options.area**0.5)
    return validation.model_copy(update={"resolutions": (str(edge),)})


def _meaning(setting: str) -> str:
    return RunOptions.model_fields[setting].description or ""
