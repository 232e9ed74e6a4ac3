"""Composition: the objective of a run, as the plugins that change it leave it."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from functools import partial
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

from st.errors import Problem, ProblemsFound

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from st.diffusion.objective import Objective


def compose(objective: Objective, changes: Iterable[tuple[str, Any]]) -> Objective:
    """The objective passed through each change, (plugin's name, function), in order.

    Raises ProblemsFound, naming the plugins, where one throws away what another has put in, where together they make an
    objective that contradicts itself, and where the path is changed, along which the family asks and renders.
    """
    changed: dict[str, str] = {}
    for name, change in changes:
        after = change(objective)
        if after is None:
            continue
        problems = list(_problems(objective, after, name, changed))
        if problems:
            raise ProblemsFound(problems)
        changed |= {field: name for field in _differences(objective, after)}
        objective = after
        if found := objective.problems():
            owners = " and ".join(dict.fromkeys(changed.values()))
            raise ProblemsFound([Problem(one.where, f"{owners}: {one.what}", one.why, one.fix) for one in found])
    return objective


def _problems(before: Objective, after: Objective, name: str, changed: dict[str, str]) -> Iterator[Problem]:
    for field in _differences(before, after):
        if field == "path":
            what = f"{name} replaces the path, along which the family is asked and its pictures are rendered."
            yield Problem("plugins", what, fix=f"Leave {name} out.")
        elif field in changed and not _builds_on(getattr(after, field), getattr(before, field)):
            what = f"{changed[field]} and {name} both replace the {field} of the objective."
            why = f"What {name} puts in its place does not build on it, so {changed[field]} would have no effect."
            yield Problem("plugins", what, why, fix=f"Leave one of them out, or name {changed[field]} after {name}.")


def _differences(before: Objective, after: Objective) -> list[str]:
    return [one.name for one in fields(before) if getattr(before, one.name) is not getattr(after, one.name)]


def _builds_on(value: object, inner: object, depth: int = 4) -> bool:
    """Whether a strategy or function holds another: in an attribute, an argument that it was given, or a closure."""
    if value is inner:
        return True
    return depth > 0 and any(_builds_on(held, inner, depth - 1) for held in _held(value))


def _held(value: object) -> Iterator[object]:
    if isinstance(value, MethodType):
        yield value.__self__
    elif isinstance(value, partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, FunctionType):
        yield from (cell.cell_contents for cell in value.__closure__ or ())
    elif is_dataclass(value) and not isinstance(value, type):
        yield from (getattr(value, one.name) for one in fields(value))
    elif isinstance(value, (list, tuple)):
        yield from value
    else:
        yield from getattr(value, "__dict__", {}).values()
