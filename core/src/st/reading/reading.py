"""Reader: tables of a run file as typed Options, and everything that is wrong with them as short sentences."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from st.errors import Problem
from st.reading.runfile import Location, RunFile, dotted
from st.spelling import closest, did_you_mean, either

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pydantic_core import ErrorDetails

    from st.options import Options

T = TypeVar("T", bound="Options")


class Reader:
    """Reads the tables of one run file. What is wrong is gathered, so that all of it is shown at once."""

    def __init__(self, run_file: RunFile) -> None:
        self.run_file = run_file
        self._problems: list[tuple[float, Problem]] = [(float("inf"), problem) for problem in run_file.problems]

    @property
    def problems(self) -> list[Problem]:
        """What is wrong, in the order of the file; what was written elsewhere or nowhere comes last."""
        return [problem for _, problem in sorted(self._problems, key=lambda numbered: numbered[0])]

    def refuse(self, location: Location, reason: str, *, why: str = "", fix: str = "") -> None:
        """``run.toml:14: [clip] norm = -1.0: must be at least 0.``: what is written at ``location`` cannot be used."""
        value = self.at(location)
        plain = value is not None and not isinstance(value, dict)
        text = self.run_file.setting(location, value) if plain else self.heading(location)
        self.problem(location, f"{text}: {reason}", why=why, fix=fix)

    def problem(self, location: Location, what: str, *, why: str = "", fix: str = "") -> None:
        """Gather a problem that has its sentence already. location: for the order."""
        origin = self.run_file.origin(location) if location else None
        line = origin.line if origin is not None and origin.line else float("inf")
        self._problems.append((line, Problem(dotted(location), what, why, fix)))

    def at(self, location: Location) -> Any:
        """What is written at ``location``, or None."""
        value: Any = self.run_file.data
        for step in location:
            if isinstance(value, dict):
                value = value.get(step)
            elif isinstance(value, list) and isinstance(step, int) and step < len(value):
                value = value[step]
            else:
                return None
        return value

    def heading(self, location: Location) -> str:
        """``run.toml:13: [optimizer]``"""
        origin = self.run_file.origin(location)
        where = origin.text if origin is not None else self.run_file.name
        return f"{where}: [{dotted(location)}]" if where else f"[{dotted(location)}]"

    def table(self, location: Location) -> dict[str, Any]:
        """The table at ``location``; empty where there is none or something else is written there."""
        value = self.at(location)
        if isinstance(value, dict):
            return value
        if value is not None:
            name = dotted(location)
            self.refuse(location, "must be a table of settings.", fix=f"Write [{name}] with its settings below it.")
        return {}

    def options(
        self, cls: type[T], location: Location, data: Mapping[str, Any] | None = None, others: Sequence[str] = ()
    ) -> T | None:
        """The table at ``location`` as ``cls``; None, with problems gathered, where it cannot be.

        data: the part of the table that is for ``cls``, where not all of it is. others: further names that the table
        may hold, for suggestions.
        """
        table = self.table(location) if data is None else data
        try:
            return cls.model_validate({key: value for key, value in table.items() if not _is_default(cls, key, value)})
        except ValidationError as error:
            self._gather(error, cls, location, others)
            return None

    def unknown(self, location: Location, names: Iterable[str]) -> None:
        """``[optimizer] has no option 'epsilom'. Did you mean 'epsilon'?``"""
        *section, key = location
        names = list(names)
        owner = f"[{dotted(section)}]" if section else "a run"
        origin = self.run_file.origin(location)
        where = origin.text if origin is not None else self.run_file.name
        what = " ".join(filter(None, (f"{where}: {owner} has no option {key!r}.", did_you_mean(str(key), names))))
        fix = "" if closest(str(key), names) else f"Options: {', '.join(names)}." if names else "It has no options."
        self.problem(location, what, fix=fix)

    def _gather(self, error: ValidationError, cls: type[Options], location: Location, others: Sequence[str]) -> None:
        found: dict[Location, list[ErrorDetails]] = {}
        for details in error.errors(include_url=False):
            found.setdefault((*location, *self._written(location, details)), []).append(details)
        for place, several in found.items():
            # Of a union's members, the one that got furthest into the value is the one that was meant.
            if any(other != place and other[: len(place)] == place for other in found) and len(place) > len(location):
                continue
            if several[0]["type"] == "extra_forbidden":
                self.unknown(place, [*_names(cls, place[len(location) : -1]), *others])
            elif several[0]["type"] == "missing":
                self.problem(place, f"{self.run_file.place(place)}: must be set.", why=_meaning(cls, several[0]))
            elif several[0]["type"] in {"value_error", "assertion_error"}:
                self.refuse(place, f"{_own_words(several[0]).rstrip('.')}.")
            else:
                meant = did_you_mean(str(self.at(place)), [name for details in several for name in _choices(details)])
                self.refuse(place, f"must be {either(dict.fromkeys(map(_expected, several)))}.", fix=meant)

    def _written(self, location: Location, details: ErrorDetails) -> Location:
        """The place that an error is about, without the names of union members that pydantic puts into it."""
        if not details["loc"]:
            return ()
        *steps, last = details["loc"]
        place: Location = ()
        for step in steps:
            if self.at((*location, *place, step)) is not None:
                place = (*place, step)
        is_key = details["type"] in {"missing", "extra_forbidden"} or self.at((*location, *place, last)) is not None
        return (*place, last) if is_key else place


def _is_default(cls: type[Options], key: str, value: Any) -> bool:
    """Whether a setting says what holds anyway; it then counts as not written, so that resolved settings read back."""
    if key not in cls.model_fields:
        return False
    default = cls.model_fields[key].default
    default = list(default) if isinstance(default, tuple) else default
    return type(default) is type(value) and bool(default == value)


def _names(cls: type[Options], place: Location) -> list[str]:
    """The options of ``cls``, or of the Options nested in it at ``place``."""
    for step in place:
        if isinstance(step, str) and step in cls.model_fields:
            nested = _nested(cls.model_fields[step].annotation)
            if nested is None:
                return []
            cls = nested
    return list(cls.model_fields)


def _nested(annotation: Any) -> type[Options] | None:
    """The Options class in a field's annotation, however it is wrapped."""
    from st.options import Options

    if isinstance(annotation, type) and issubclass(annotation, Options):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if (found := _nested(argument)) is not None:
            return found
    return None


def _meaning(cls: type[Options], details: ErrorDetails) -> str:
    field = cls.model_fields.get(str(details["loc"][-1]))
    return field.description or "" if field is not None else ""


def _own_words(details: ErrorDetails) -> str:
    return str(details.get("ctx", {}).get("error", details["msg"]))


_SENTENCES = {
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "too_short": "a list of at least {min_length}",
    "too_long": "a list of at most {max_length}",
    "string_too_short": "at least {min_length} characters long",
    "string_too_long": "at most {max_length} characters long",
    "string_pattern_mismatch": "text of the form {pattern}",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "finite_number": "a finite number",
    "int_from_float": "a whole number",
    "path_type": "a path",
}
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text",
    "list": "a list",
    "tuple": "a list",
    "set": "a list",
    "dict": "a table",
    "model": "a table",
    "none": "unset",
}


def _expected(details: ErrorDetails) -> str:
    """What would have been right: "less than 1", "a whole number"; follows "must be"."""
    kind = details["type"]
    if kind in _SENTENCES:
        return _SENTENCES[kind].format(**{key: _number(value) for key, value in details.get("ctx", {}).items()})
    family = kind.partition("_")[0]
    if family in _KINDS:
        return _KINDS[family]
    message = details["msg"].removeprefix("Input should be ")
    return message[:1].lower() + message[1:]


def _choices(details: ErrorDetails) -> list[str]:
    """The words that could be written instead; none where an option is not a choice of words."""
    expected = str(details.get("ctx", {}).get("expected", "")) if details["type"] == "literal_error" else ""
    return re.findall(r"'([^']*)'", expected)


def _number(value: object) -> object:
    return f"{value:g}" if isinstance(value, float) else value
