"""RunFile: the settings a user wrote (file, environment, ``--set``) as plain data, and where each was written."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from st.errors import Problem, StError
from st.reading.toml import statement_lines
from st.redaction import without_credentials

Location = tuple[str | int, ...]
"""A place in the settings: ("optimizer", "lr"), ("dataset", 0, "url")."""

ENVIRONMENT_PREFIX = "ST_"
NOT_SETTINGS = frozenset({"ST_TRACE_HOOKS", "ST_LAUNCHED", "ST_LAUNCHER"})
"""Environment variables of ours that are no settings."""

_PLACEHOLDER = re.compile(r"\{env:([^{}]*)\}")


class RunFileUnreadable(StError):
    """A run file that is missing, or is not TOML or JSON."""

    exit_code = 2


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was written: ``run.toml:14``, ``--set``, ``ST_OPTIMIZER__LR``. line: 0 where there is none."""

    text: str
    line: int = 0


@dataclass(slots=True)
class RunFile:
    """What a user wrote, before anything of it is checked.

    data: all settings, later sources over earlier ones, placeholders filled in. origins: where each value was written.
    placeholders: values that held ``{env:NAME}``, as written. variables: what those variables hold, but for those that
    only name the output folder. problems: what could not be read.
    """

    name: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[Location, Origin] = field(default_factory=dict)
    placeholders: dict[Location, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def origin(self, location: Location) -> Origin | None:
        """Where the value at ``location`` was written, or what is in it, or the table that should hold it."""
        if location not in self.origins:
            for inner, origin in self.origins.items():
                if inner[: len(location)] == location:
                    return origin
        for length in range(len(location), 0, -1):
            if location[:length] in self.origins:
                return self.origins[location[:length]]
        return None

    def setting(self, location: Location, value: object) -> str:
        """``run.toml:14: [optimizer] lr = 1.5`` or ``--set optimizer.lr=1.5``: a value as the user knows it.

        Never what the environment or an address holds in secret.
        """
        value = self.placeholders.get(location, value)
        origin = self.origins.get(location)
        if origin is not None and origin.text.startswith("-"):
            return f"{origin.text} {dotted(location)}={_shown(value)}"
        if origin is not None and origin.text.startswith(ENVIRONMENT_PREFIX):
            return f"{origin.text}={_shown(value)}"
        return f"{self.place(location)} = {_shown(value)}"

    def place(self, location: Location) -> str:
        """``run.toml:14: [optimizer] lr``: a place in the settings, whether or not something is written there."""
        origin = self.origin(location)
        *section, key = location
        text = f"[{dotted(section)}] {key}" if section else f"{key}"
        where = origin.text if origin is not None else self.name
        return f"{where}: {text}" if where else text


def read(path: Path | None, overrides: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> RunFile:
    """The settings of a run file with ``ST_`` variables over it and ``--set KEY=VALUE`` over those.

    path: TOML or JSON by its suffix, or None for no file. Raises RunFileUnreadable where the file as a whole cannot be
    read; what is wrong with single values is in ``problems``.
    """
    environment = environment or {}
    run_file = _read_file(path) if path is not None else RunFile()
    for variable, text in sorted(environment.items()):
        if variable.startswith(ENVIRONMENT_PREFIX) and variable not in NOT_SETTINGS:
            keys = variable.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
            _put(run_file, keys, _value(text), Origin(variable))
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            what = f"--set {override!r} is not KEY=VALUE, as in --set optimizer.lr=1e-4."
            run_file.problems.append(Problem(override, what))
        else:
            _put(run_file, [part.strip() for part in key.split(".")], _value(text), Origin("--set"))
    _fill_placeholders(run_file, environment)
    return run_file


def _read_file(path: Path) -> RunFile:
    try:
        written = path.read_bytes()
        # Editors of some systems begin a file with a byte order mark.
        text = written.decode("utf-8-sig").replace("\r\n", "\n")
    except FileNotFoundError:
        raise RunFileUnreadable(f"there is no run file {str(path)!r}.", why=f"Looked for {path.absolute()}") from None
    except IsADirectoryError:
        what = f"{str(path)!r} is a folder, not a run file."
        files = sorted(file.name for file in path.glob("*.toml"))
        raise RunFileUnreadable(what, fix=f"Name a file in it: {path / files[0]}" if files else "") from None
    except UnicodeDecodeError as error:
        line = written.count(b"\n", 0, error.start) + 1
        what = f"{path.name}:{line}: not UTF-8: the byte {error.object[error.start]:#04x} is none of its letters."
        raise RunFileUnreadable(what, fix="Save the file as UTF-8.") from error
    except OSError as error:
        raise RunFileUnreadable(f"the run file {str(path)!r} cannot be read: {error.strerror or error}") from error
    if path.suffix == ".json":
        return _read_json(path, text)
    if path.suffix != ".toml":
        raise RunFileUnreadable(f"run file {str(path)!r}: the name must end in .toml or .json.")
    try:
        # The tables of a dotted key are read by a loop, and only what goes through them by calls has a depth.
        data, lines = tomllib.loads(text), statement_lines(text)
    except tomllib.TOMLDecodeError as error:
        raise RunFileUnreadable(_toml_message(path, str(error))) from error
    except (RecursionError, ValueError) as error:
        raise RunFileUnreadable(f"{path.name}: {_absurd(error)}.") from error
    origins = {location: Origin(f"{path.name}:{line}", line) for location, line in lines.items()}
    return RunFile(path.name, data, origins)


def _read_json(path: Path, text: str) -> RunFile:
    try:
        data = json.loads(text, object_pairs_hook=_without_nulls)
        # Halves of surrogate pairs can be written with an escape, and neither printed nor saved.
        json.dumps(data, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        raise RunFileUnreadable(f"{path.name}:{error.lineno}: not JSON: {error.msg}.") from error
    except _KeyTwice as error:
        raise RunFileUnreadable(f"{path.name}: {error.args[0]!r} is given twice.") from error
    except (RecursionError, ValueError) as error:
        raise RunFileUnreadable(f"{path.name}: {_absurd(error)}.") from error
    if not isinstance(data, dict):
        raise RunFileUnreadable(f"{path.name}: a run file is an object of settings, not {type(data).__name__}.")
    return RunFile(path.name, data, {location: Origin(path.name) for location, _ in leaves(data)})


def _absurd(error: Exception) -> str:
    """What makes a text unreadable whose grammar is right."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeEncodeError):
        return "it holds half of a surrogate pair, which is no character"
    return "it holds a number with thousands of digits"


class _KeyTwice(Exception):
    """The key that one JSON object has twice."""


def _without_nulls(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object without its nulls: a null is a setting that is not set, as TOML writes it by leaving it out."""
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise _KeyTwice(key)
    return {key: value for key, value in pairs if value is not None}


def _toml_message(path: Path, message: str) -> str:
    position = re.search(r" \(at line (\d+), column \d+\)$| \(at end of document\)$", message)
    line = f":{position[1]}" if position and position[1] else ""
    reason = message[: position.start()] if position else message
    if reason.startswith(("Cannot overwrite", "Cannot declare", "Cannot mutate")):
        return f"{path.name}{line}: the same key is given twice."
    return f"{path.name}{line}: not TOML: {reason[:1].lower()}{reason[1:]}."


def _value(text: str) -> Any:
    """A value as TOML writes it (1e-4, true, [1, 2], "text"); anything else is text as it stands."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    value = parsed["value"]
    # Dates are TOML values but no setting is one; a second line would smuggle in a second key.
    return value if len(parsed) == 1 and isinstance(value, (bool, int, float, str, list, dict)) else text


def _put(run_file: RunFile, keys: Sequence[str], value: Any, origin: Origin) -> None:
    table: Any = run_file.data
    location: Location = ()
    for key, following in zip(keys, [*keys[1:], None], strict=True):
        step: str | int = key
        if isinstance(table, list):
            if not key.isdecimal() or int(key) > len(table):
                _refuse(run_file, origin, keys, f"{dotted(location)} is a list of {len(table)}, counted from 0.")
                return
            step = int(key)
            if step == len(table):
                table.append({})
        elif not isinstance(table, dict):
            _refuse(run_file, origin, keys, f"{dotted(location)} is {_shown(table)}, which has no settings in it.")
            return
        location = (*location, step)
        if following is None:
            table[step] = value
        elif isinstance(table, dict) and step not in table:
            table[step] = [] if following.isdecimal() else {}
        table = table[step]
    for known in [known for known in run_file.origins if known[: len(location)] == location]:
        del run_file.origins[known]
    run_file.origins[location] = origin
    for below, _ in leaves(value):
        run_file.origins[(*location, *below)] = origin


def _refuse(run_file: RunFile, origin: Origin, keys: Sequence[str], why: str) -> None:
    what = f"{origin.text} {'.'.join(keys)}: {why}" if origin.text.startswith("-") else f"{origin.text}: {why}"
    run_file.problems.append(Problem(".".join(keys), what))


def _fill_placeholders(run_file: RunFile, environment: Mapping[str, str]) -> None:
    for location, value in list(leaves(run_file.data)):
        if not isinstance(value, str) or not (names := _PLACEHOLDER.findall(value)):
            continue
        missing = [name for name in dict.fromkeys(names) if name not in environment]
        for name in missing:
            what = f"{run_file.setting(location, value)}: the environment variable {name!r} is not set."
            run_file.problems.append(Problem(dotted(location), what))
        if not missing:
            run_file.placeholders[location] = value
            if location != ("output",):
                run_file.variables |= {name: environment[name] for name in names}
            filled = _PLACEHOLDER.sub(lambda match: environment[match[1]], value)
            table: Any = run_file.data
            for step in location[:-1]:
                table = table[step]
            table[location[-1]] = filled


def leaves(data: Any, location: Location = ()) -> Iterator[tuple[Location, Any]]:
    """Every value that is no table, with its place; lists of plain values count as one value and as several."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield from leaves(value, (*location, key))
        return
    if isinstance(data, list):
        for index, value in enumerate(data):
            yield from leaves(value, (*location, index))
    if location and not (isinstance(data, list) and data and all(isinstance(item, dict) for item in data)):
        yield location, data


def dotted(location: Sequence[str | int]) -> str:
    """``dataset.0.url``"""
    return ".".join(str(step) for step in location)


def _shown(value: object) -> str:
    text = json.dumps(value) if isinstance(value, bool) else without_credentials(repr(value))
    return text if len(text) <= 80 else f"{text[:77]}..."
