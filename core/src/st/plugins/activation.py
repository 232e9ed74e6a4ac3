"""Activation: named plugins are found, imported, checked, configured and registered."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

import st
from st import hookspecs
from st.data.backend import BACKEND
from st.errors import Blamed, PluginError, StError
from st.plugins.builtin import Builtin
from st.plugins.catalogue import Catalogue, Installed, Kind, split_kind
from st.plugins.loading import at_border, check_class, is_local, load, load_local
from st.registrar import Registrar

if TYPE_CHECKING:
    from st.model.family import ModelFamily
    from st.options import Options
    from st.reading.reading import Reader
    from st.reading.runfile import Location
    from st.report.tracker import Tracker

TAKE_AWAY = "no:"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(?=:)")
_MADE_AT_RUN_TIME: dict[Kind, str] = {"models": "family", "trackers": "tracker"}


@dataclass(frozen=True, slots=True)
class Active:
    """A plugin that takes part in a run. instance: the object made from its options; of a backend, its class."""

    name: str
    kind: Kind
    distribution: str
    version: str
    instance: Any
    options: Options | None = None

    @property
    def label(self) -> str:
        """``plugin 'old' (st-old 0.2)``"""
        return Installed(self.name, self.kind, self.distribution, self.version, "", st.API[0]).label

    @classmethod
    def of(cls, plugin: Installed, instance: Any, options: Options | None = None) -> Active:
        return cls(plugin.name, plugin.kind, plugin.distribution, plugin.version, instance, options)


@dataclass(frozen=True, slots=True)
class Plugins:
    """The plugins of a run, in the order of the plugin list; backends last.

    ``pm.hook.st_step(run=run)`` gives the answers in that order.
    """

    pm: pluggy.PluginManager
    registrar: Registrar
    active: tuple[Active, ...]

    @property
    def family(self) -> ModelFamily[Any]:
        """The one model family of the run, made from ``[model]``."""
        family: ModelFamily[Any] = next(plugin.instance for plugin in self.active if plugin.kind == "models")
        return family

    @property
    def trackers(self) -> dict[str, Tracker]:
        """Trackers by name, made and not started."""
        return {plugin.name: plugin.instance for plugin in self.active if plugin.kind == "trackers"}

    def functions(self, hook: str, **arguments: Any) -> list[tuple[str, Callable[[Any], Any]]]:
        """(plugin name, function) of each plugin that implements a hook, whose last argument is still to be given."""
        found: list[tuple[str, Callable[[Any], Any]]] = []
        for one in reversed(getattr(self.pm.hook, hook).get_hookimpls()):
            given = {name: arguments[name] for name in one.argnames if name in arguments}
            last = [name for name in one.argnames if name not in arguments]
            found.append((one.plugin_name, partial(_given, one.function, given, last)))
        return found

    def answers(self, hook: str, **arguments: Any) -> list[tuple[str, Any]]:
        """(plugin name, answer) of each active plugin that has one, in the order of the plugin list.

        What a plugin raises comes through with a note of whose it is.
        """
        if _is_traced() and (implementations := getattr(self.pm.hook, hook).get_hookimpls()):
            _trace(hook, implementations, arguments)
        labels = {plugin.name: plugin.label for plugin in self.active}
        found = []
        for name, call in self.calls(hook, **arguments):
            with Blamed(f"{labels[name]} failed in {hook}"):
                answer = call()
            if answer is not None:
                found.append((name, answer))
        return found

    def calls(self, hook: str, **arguments: Any) -> list[tuple[str, Callable[[], Any]]]:
        """(plugin name, its call of the hook, yet to be made), in the order of the plugin list."""
        implementations = reversed(getattr(self.pm.hook, hook).get_hookimpls())
        return [
            (one.plugin_name, partial(one.function, *(arguments[name] for name in one.argnames)))
            for one in implementations
        ]

    def stateful(self) -> list[tuple[str, Any]]:
        """(name, plugin) of each plugin with a state for checkpoints: it has state_dict and load_state_dict."""
        return [
            (plugin.name, plugin.instance)
            for plugin in self.active
            if plugin.kind != "backends"
            and hasattr(plugin.instance, "state_dict")
            and hasattr(plugin.instance, "load_state_dict")
        ]

    def versions(self) -> dict[str, dict[str, str]]:
        """Each plugin's kind, package and version, for a run's manifest."""
        return {
            plugin.name: {"kind": plugin.kind, "distribution": plugin.distribution, "version": plugin.version}
            for plugin in self.active
        }


def _is_traced() -> bool:
    return os.environ.get("ST_TRACE_HOOKS", "0") not in {"", "0"}


def hook_manager(plugins: Iterable[tuple[str, object]]) -> pluggy.PluginManager:
    """A pluggy manager that asks these plugins, by name, in this order."""
    pm = pluggy.PluginManager("st")
    pm.add_hookspecs(hookspecs)
    # Pluggy asks the last registered first.
    for name, instance in reversed(list(plugins)):
        pm.register(instance, name)
    pm.check_pending()
    if _is_traced():
        pm.add_hookcall_monitoring(_trace, lambda outcome, hook_name, hook_impls, kwargs: None)
    return pm


def _trace(hook_name: str, hook_impls: Sequence[pluggy.HookImpl], kwargs: Mapping[str, Any]) -> None:
    names = ", ".join(implementation.plugin_name for implementation in reversed(hook_impls)) or "nobody"
    print(f"hook {hook_name}({', '.join(kwargs)}): {names}", file=sys.stderr)


def scheme_of(url: str) -> str:
    """The backend that a data set's url names; "file" for a plain path, also for one with a drive letter."""
    match = _SCHEME.match(url)
    return match[0].lower() if match else "file"


def is_filesystem(scheme: str) -> bool:
    """Whether a store can be opened at urls of this scheme without a backend."""
    from fsspec import available_protocols

    return scheme in available_protocols()


def plugin_names(listed: Iterable[str], added: Iterable[str]) -> tuple[list[str], list[str]]:
    """The plugins to activate and those taken away, from the run file's list and ``--plugins``, each name once.

    A later ``no:NAME`` takes away an earlier name, and a later name brings it back.
    """
    names: dict[str, None] = {}
    gone: dict[str, None] = {}
    parts = [part.strip() for text in added for part in text.split(",")]
    for name in [*listed, *(part for part in parts if part)]:
        if name.startswith(TAKE_AWAY):
            taken = name.removeprefix(TAKE_AWAY)
            names = {other: None for other in names if taken not in (other, bare_name(other))}
            gone[taken] = None
        else:
            gone.pop(name, None)
            names[name] = None
    return list(names), list(gone)


class Activation:
    """The plugins of one run while they are being activated. What is wrong goes to the reader; nothing raises.

    failed: names that were asked for and cannot be used. Their sections are not read, and a strategy that they might
    have brought is not called unknown.
    """

    def __init__(self, catalogue: Catalogue, reader: Reader, reserved: Iterable[str]) -> None:
        """reserved: the run file's own sections, whose names no plugin may have."""
        self.catalogue, self.reader = catalogue, reader
        self.reserved = frozenset(reserved)
        self.registrar = Registrar()
        self.failed: set[str] = set()
        self._active: dict[str, Active] = {}
        self._backends: list[Active] = []

    def activate(self, names: Sequence[str]) -> Plugins | None:
        """Activate the plugins of a list, then the backends of the data sets. None where a run has no model family."""
        for name in self.register(names):
            self._activate(name, self._made_at_run_time)
        self._activate_backends()
        if not self._is_one_family(names):
            return None
        active = [self._active[name] for name in names if name in self._active]
        pm = hook_manager((plugin.name, plugin.instance) for plugin in active)
        return Plugins(pm, self.registrar, (*active, *self._backends))

    def register(self, names: Sequence[str]) -> list[str]:
        """Activate those of a list that are installed, and ask them what they bring; the names that are not."""
        late = [name for name in names if not is_local(name) and not self.catalogue.named(name)]
        for name in names:
            if name not in late:
                self._activate(name, self._load)
        self._call_register()
        return late

    @property
    def names(self) -> list[str]:
        """The names of the active plugins; their sections are named so."""
        return [plugin.name for plugin in self._active.values()]

    @property
    def options(self) -> dict[str, Options]:
        """The options of the active plugins, by name."""
        return {plugin.name: plugin.options for plugin in self._active.values() if plugin.options is not None}

    @property
    def families(self) -> list[Active]:
        """The active model families; more or less than one is a problem that the reader has been told."""
        return [plugin for plugin in self._active.values() if plugin.kind == "models"]

    def _load(self, name: str) -> tuple[Installed, type[Any]]:
        if is_local(name):
            return load_local(name)
        installed = self.catalogue.find(name)
        return installed, load(installed)

    def _made_at_run_time(self, name: str) -> tuple[Installed, type[Any]]:
        """A class that another plugin has registered; where there is none, what the catalogue says of the name."""
        kind, bare = split_kind(name)
        for of, strategy_kind in _MADE_AT_RUN_TIME.items():
            strategy = self.registrar.get(strategy_kind, bare) if kind in (None, of) else None
            if strategy is not None:
                found = Installed(bare, of, strategy.owner, "", f"{strategy.build.__module__}:{bare}", st.API[0])
                return found, check_class(found, strategy.build)
        return self._load(name)

    def _activate(self, name: str, load_named: Callable[[str], tuple[Installed, type[Any]]]) -> None:
        try:
            installed, cls = load_named(name)
            self._check_name(installed)
            if installed.kind == "backends":
                self._add_backend(installed, cls)
                return
            options = self.reader.options(cls.Options, ("model" if installed.kind == "models" else installed.name,))
            if options is None:
                self.failed.add(installed.name)
            else:
                instance = at_border(installed, "cannot be made", lambda: cls(options))
                self._active[name] = Active.of(installed, instance, options)
        except StError as error:
            self.failed.add(bare_name(name))
            self.reader.problem(self._listed_at(name), error.what, why=error.why, fix=error.fix)

    def _add_backend(self, installed: Installed, cls: type[Any]) -> None:
        with self.registrar.owned_by(installed.label):
            self.registrar.add(BACKEND, installed.name, cls, cls.Options)
        self._backends.append(Active.of(installed, cls))

    def _check_name(self, installed: Installed) -> None:
        if installed.kind == "commands":
            raise PluginError(
                f"{installed.label} is a command, which takes part in no run.", fix=f"Type it: st {installed.name}"
            )
        if installed.name in self.reserved:
            raise PluginError(f"{installed.label} has the name of a section of every run file: [{installed.name}].")
        if installed.name in self.names:
            raise PluginError(
                f"two active plugins are named {installed.name!r}.", fix="Take one of them out of plugins."
            )

    def _call_register(self) -> None:
        Builtin().st_register(self.registrar)
        active = list(self._active.values())
        pm = hook_manager((plugin.name, plugin.instance) for plugin in active)
        for plugin in active:
            others = [other.instance for other in active if other is not plugin]
            hook = pm.subset_hook_caller("st_register", others)
            installed = Installed(plugin.name, plugin.kind, plugin.distribution, plugin.version, "", st.API[0])
            try:
                with self.registrar.owned_by(installed.label) as register:
                    at_border(installed, "failed in st_register", partial(hook, register=register))
            except StError as error:
                self.failed.add(plugin.name)
                self.reader.problem(self._listed_at(plugin.name), error.what, why=error.why, fix=error.fix)

    def _activate_backends(self) -> None:
        datasets = self.reader.at(("dataset",))
        count = len(datasets) if isinstance(datasets, list) else 0
        for location in (*(("dataset", index, "url") for index in range(count)), ("cache", "url")):
            url = self.reader.at(location)
            scheme = scheme_of(url) if url and isinstance(url, str) else ""
            if not scheme or scheme in self.failed or self.registrar.get("backend", scheme) is not None:
                continue
            if location[0] == "cache" and is_filesystem(scheme) and "backends" not in self.catalogue.kinds(scheme):
                continue
            try:
                installed = self.catalogue.find(scheme, "backends")
                self._add_backend(installed, load(installed))
            except StError as error:
                self.failed.add(scheme)
                self.reader.refuse(location, error.what, why=error.why, fix=error.fix)

    def _is_one_family(self, names: Sequence[str]) -> bool:
        families = self.families
        if len(families) > 1:
            named = " and ".join(repr(plugin.name) for plugin in families)
            fix = f"Take one away: --plugins {TAKE_AWAY}{families[-1].name}"
            self.reader.problem(("plugins",), f"a run trains one model family; plugins name {named}.", fix=fix)
        elif not families and not any(map(self._may_be_family, self.failed)):
            installed = self.catalogue.names("models")
            fix = f"Installed: {', '.join(installed)}." if installed else "None is installed; see st plugins."
            self.reader.problem(("plugins",), "no model family is named in plugins.", fix=fix)
        return len(families) == 1

    def _may_be_family(self, name: str) -> bool:
        kinds = self.catalogue.kinds(name)
        return not kinds or "models" in kinds

    def _listed_at(self, name: str) -> Location:
        listed = self.reader.at(("plugins",))
        return ("plugins", listed.index(name)) if isinstance(listed, list) and name in listed else ("plugins",)


def _given(function: Callable[..., Any], given: Mapping[str, Any], last: Sequence[str], value: Any) -> Any:
    return function(**given, **dict.fromkeys(last, value))


def bare_name(name: str) -> str:
    """The name that a plugin of the list goes by: without its kind, and of a file its stem."""
    return Path(name.partition(":")[0]).stem if is_local(name) else split_kind(name)[1]
