"""Catalogue: which plugins are installed, read from metadata without importing any of them."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from importlib.resources import files
from typing import TYPE_CHECKING, Literal, cast

import st
from st.errors import PluginError
from st.installing import install_command
from st.spelling import closest

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

Kind = Literal["models", "backends", "trackers", "hooks", "commands"]
KINDS: tuple[Kind, ...] = ("models", "backends", "trackers", "hooks", "commands")
_GROUP = re.compile(r"st\.v(\d+)\.(models|backends|trackers|hooks|commands)")


@dataclass(frozen=True, slots=True)
class Installed:
    """A plugin that an installed distribution offers.

    target: ``module:Class``. api: the major version it speaks. summary: the distribution's, of a command.
    """

    name: str
    kind: Kind
    distribution: str
    version: str
    target: str
    api: int
    summary: str = ""

    @property
    def label(self) -> str:
        """``plugin 'old' (st-old 0.2)``"""
        return f"plugin {self.name!r} ({' '.join(filter(None, (self.distribution, self.version)))})"


@dataclass(frozen=True, slots=True)
class Known:
    """A plugin of ours, whether or not it is installed."""

    name: str
    kind: Kind
    distribution: str


@dataclass(frozen=True, slots=True)
class Brought:
    """A strategy that a plugin of ours brings. written: what to write where the name is not its ``kind`` itself."""

    kind: str
    name: str
    plugin: str
    written: str = ""


class Catalogue:
    """The plugins that can be named: those installed, and those of ours that are not."""

    def __init__(self, installed: Iterable[Installed], known: Iterable[Known], brought: Iterable[Brought] = ()) -> None:
        self.everything = tuple(installed)
        self.known = tuple(known)
        self.brought = tuple(brought)

    @classmethod
    def scan(cls) -> Catalogue:
        """Read the metadata of every distribution on ``sys.path``; a few milliseconds for a hundred of them."""
        return cls(_installed(), known_plugins(), parse_brought(_known_text()))

    @cached_property
    def usable(self) -> tuple[Installed, ...]:
        """The installed plugins that speak this API."""
        return tuple(plugin for plugin in self.everything if plugin.api == st.API[0])

    def named(self, name: str, kind: Kind | None = None) -> list[Installed]:
        """The usable plugins of this name; several where packages share one. ``models:name`` asks for a kind.

        A command, which takes part in no run, is meant only where nothing else has its name.
        """
        kind, name = split_kind(name, kind)
        found = [plugin for plugin in self.usable if plugin.name == name and kind in (None, plugin.kind)]
        return [plugin for plugin in found if plugin.kind != "commands"] or found

    def find(self, name: str, kind: Kind | None = None) -> Installed:
        """The one plugin of this name. Raises PluginError saying what to install, to spell or to say instead."""
        found = self.named(name, kind)
        if len(found) == 1:
            return found[0]
        if found:
            raise _ambiguous(found)
        raise self._missing(*split_kind(name, kind))

    def command(self, name: str) -> Installed:
        """The command that is typed so; ``package:name`` chooses between two. Raises PluginError saying how."""
        package, _, bare = name.rpartition(":")
        found = [plugin for plugin in self.named(bare, "commands") if package in ("", plugin.distribution)]
        if len(found) == 1:
            return found[0]
        raise _ambiguous(found) if found else self._missing("commands", bare)

    def commands(self) -> dict[str, list[Installed]]:
        """The usable commands by what is typed for each; several where packages share a name."""
        found: dict[str, list[Installed]] = {}
        for plugin in self.usable:
            if plugin.kind == "commands":
                found.setdefault(plugin.name, []).append(plugin)
        return found

    def names(self, kind: Kind | None = None) -> list[str]:
        """The names of usable plugins, sorted."""
        chosen = [
            plugin for plugin in self.usable if plugin.kind == kind or (kind is None and plugin.kind != "commands")
        ]
        return sorted({plugin.name for plugin in chosen})

    def kinds(self, name: str) -> set[Kind]:
        """The kinds of which a plugin of this name exists, installed or known, of whatever API."""
        found = {plugin.kind for plugin in self.everything if plugin.name == name}
        return found | {plugin.kind for plugin in self.known if plugin.name == name}

    def brings(self, kind: str, name: str, active: Iterable[str] = ()) -> str:
        """How to get a strategy of this kind and name from a plugin of ours; '' where none brings it.

        active: the plugins that the run names already.
        """
        found = next((one for one in self.brought if (one.kind, one.name) == (kind, name)), None)
        if found is None:
            return ""
        if found.plugin in active:
            return f"Write {found.written}." if found.written else ""
        said = f"The plugin {found.plugin!r} brings it: add {found.plugin!r} to plugins"
        said += f", and write {found.written}." if found.written else "."
        if not self.named(found.plugin):
            owner = next(known.distribution for known in self.known if known.name == found.plugin)
            said += f" It is not installed: {install_command(owner)}"
        return said

    def _missing(self, kind: Kind | None, name: str) -> PluginError:
        for plugin in self.everything:
            if plugin.name == name and kind in (None, plugin.kind):
                return _other_api(plugin)
        known = {plugin.name: plugin for plugin in self.known if kind in (None, plugin.kind)}
        if name in known:
            return PluginError(
                f"plugin {name!r} is not installed.", fix=f"Fix: {install_command(known[name].distribution)}"
            )
        what = f"no plugin is named {name!r}."
        installed = self.names(kind)
        matches = closest(name, installed, limit=1) or closest(name, known, limit=1)
        if not matches:
            return PluginError(what, fix=f"Installed: {', '.join(installed)}." if installed else "None is installed.")
        fix = f"Did you mean {matches[0]!r}?"
        if matches[0] not in installed:
            fix += f" It is not installed: {install_command(known[matches[0]].distribution)}"
        return PluginError(what, fix=fix)


def split_kind(name: str, kind: Kind | None = None) -> tuple[Kind | None, str]:
    """``models:name`` as its kind and its name; ``kind`` where the name has none."""
    prefix, colon, rest = name.partition(":")
    if colon and prefix in KINDS:
        return prefix, rest
    return kind, name


def _ambiguous(found: list[Installed]) -> PluginError:
    packages = " and ".join(f"{plugin.distribution} {plugin.version} ({plugin.kind})" for plugin in found)
    name, kinds = found[0].name, {plugin.kind for plugin in found}
    if kinds == {"commands"}:
        typed = " or ".join(f"st {plugin.distribution}:{name}" for plugin in found)
        removed = " or ".join(f"pip uninstall {plugin.distribution}" for plugin in found)
        return PluginError(
            f"several packages provide command {name!r}: {packages}.", why=f"Type {typed},", fix=f"or {removed}"
        )
    if len(kinds) == len(found):
        fix = "Say " + " or ".join(repr(f"{plugin.kind}:{name}") for plugin in found) + "."
    else:
        fix = "Fix: uninstall one: " + " or ".join(f"pip uninstall {plugin.distribution}" for plugin in found)
    return PluginError(f"several packages provide plugin {name!r}: {packages}.", fix=fix)


def _other_api(plugin: Installed) -> PluginError:
    package = plugin.distribution if plugin.api < st.API[0] else "st-core"
    what = f"{plugin.label} speaks plugin API {plugin.api}; this st speaks {st.API[0]}."
    return PluginError(what, fix=f"Fix: {install_command(package, '-U')}")


def _installed() -> list[Installed]:
    found: dict[tuple[str, int, str, str], Installed] = {}
    for distribution in metadata.distributions():
        text = distribution.read_text("entry_points.txt")
        # Parsing is what takes time, so only the files that can hold a group of ours are parsed.
        if not text or "st.v" not in text:
            continue
        package = distribution.metadata["Name"]
        for entry in distribution.entry_points:
            if group := _GROUP.fullmatch(entry.group):
                api, kind = int(group[1]), cast("Kind", group[2])
                told = kind == "commands" and "Summary" in distribution.metadata
                summary = distribution.metadata["Summary"] if told else ""
                plugin = Installed(entry.name, kind, package, distribution.version, entry.value, api, summary)
                # The first on sys.path is the one that an import would find.
                found.setdefault((package, api, kind, entry.name), plugin)
    return sorted(found.values(), key=lambda plugin: (KINDS.index(plugin.kind), plugin.name, plugin.distribution))


def known_plugins() -> list[Known]:
    """The plugins that this version of st was released with."""
    return parse_known(_known_text())


def _known_text() -> str:
    return files("st.plugins").joinpath("known.toml").read_text(encoding="utf-8")


def parse_known(text: str) -> list[Known]:
    """Read what ``write_known`` wrote."""
    return [
        Known(name, kind, distribution)
        for kind in KINDS
        for name, distribution in tomllib.loads(text).get(kind, {}).items()
    ]


def parse_brought(text: str) -> list[Brought]:
    """The strategies that ``write_known`` wrote."""
    return [
        Brought(kind, name, plugin, written)
        for kind, names in tomllib.loads(text).get("brings", {}).items()
        for name, (plugin, written) in names.items()
    ]


def write_known(pyprojects: Iterable[Path]) -> str:
    """The text of ``known.toml`` from the plugins' ``pyproject.toml`` files: a table per kind, name = distribution.

    What they bring, which ``[tool.st.brings]`` says by kind of strategy, follows: name = plugin and what to write.
    """
    tables: dict[Kind, dict[str, str]] = {kind: {} for kind in KINDS}
    brought: dict[str, dict[str, tuple[str, str]]] = {}
    for path in pyprojects:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
        project = told["project"]
        for kind, names in told.get("tool", {}).get("st", {}).get("brings", {}).items():
            plugin = next(iter(project["entry-points"][f"st.v{st.API[0]}.hooks"]))
            brought.setdefault(kind, {}).update({name: (plugin, written) for name, written in names.items()})
        for group, entries in project.get("entry-points", {}).items():
            if (match := _GROUP.fullmatch(group)) and int(match[1]) == st.API[0]:
                tables[cast("Kind", match[2])].update(dict.fromkeys(entries, project["name"]))
    lines = ["# Plugins of this release, by kind: name = distribution. Written by `nox -s known`."]
    for kind, distributions in tables.items():
        lines += ["", f"[{kind}]"]
        lines += [f'"{name}" = "{distribution}"' for name, distribution in sorted(distributions.items())]
    for strategy, found in sorted(brought.items()):
        lines += ["", f"[brings.{strategy}]"]
        lines += [f"{json.dumps(name)} = {json.dumps(how)}" for name, how in sorted(found.items())]
    return "\n".join(lines) + "\n"
