"""Routes as a run file gives them, and as the blocks of one denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

from pydantic import Field, model_validator

from st import Options, Problem


class Route(Options):
    """Blocks that run without a share of the tokens."""

    drop: float = Field(0.5, gt=0, lt=1)
    """Share of the tokens that skip the routed blocks."""
    first: int = 2
    """First routed block, counted from 0; negative counts from the end."""
    last: int = -2
    """Last routed block; negative counts from the end."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if (self.first < 0) == (self.last < 0) and self.first > self.last:
            raise ValueError(f"first = {self.first} comes after last = {self.last}; swap them")
        return self


class TreadOptions(Route):
    """One route by its own options, or several as ``routes``."""

    routes: tuple[Route, ...] = ()
    """Several routes, each with `drop`, `first` and `last` of its own, instead of the one above."""
    importance: float = Field(0.0, ge=0, le=1)
    """What decides: 0 chance alone, 1 the size of a token alone (the largest skip), between a mix of both."""

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> Self:
        # Compared with the defaults, not with what was written: a saved run's settings name every option.
        moot = [name for name, field in Route.model_fields.items() if getattr(self, name) != field.default]
        if self.routes and moot:
            raise ValueError(f"beside routes, these have no effect: {', '.join(moot)}; write them into each route")
        return self


@dataclass(frozen=True, slots=True)
class Span:
    """A route in one denoiser: blocks ``first`` to ``last`` inclusive, both counted from 0. settings: what says so."""

    first: int
    last: int
    drop: float
    settings: tuple[str, str]


def spans(options: TreadOptions, count: int) -> tuple[Span, ...]:
    """The routes in a denoiser of ``count`` blocks, in the order of the run file; they may lie outside or overlap."""
    found = []
    for number, route in enumerate(options.routes or (options,)):
        prefix = f"routes.{number}." if options.routes else ""
        first, last = (index + count if index < 0 else index for index in (route.first, route.last))
        found.append(Span(first, last, route.drop, (f"{prefix}first", f"{prefix}last")))
    return tuple(found)


def problems(routes: Sequence[Span], count: int) -> list[Problem]:
    """What keeps these routes from a denoiser of ``count`` blocks."""
    found = []
    for route in routes:
        for setting, index in zip(route.settings, (route.first, route.last), strict=True):
            if not 0 <= index < count:
                what = f"tread.{setting} is block {index}, but this denoiser has blocks 0-{count - 1}."
                found.append(Problem(f"tread.{setting}", what, fix=f"Set it to 0 to {count - 1}, or -1 to -{count}."))
        if route.first > route.last:
            first, last = route.settings
            what = f"tread.{first} is block {route.first}, after tread.{last}, block {route.last} of 0-{count - 1}."
            found.append(Problem(f"tread.{first}", what, fix=f"Set tread.{first} lower or tread.{last} higher."))
    return found or _overlaps(routes)


def _overlaps(routes: Sequence[Span]) -> list[Problem]:
    ordered = sorted(routes, key=lambda route: route.first)
    return [
        Problem(
            f"tread.{after.settings[0]}",
            f"tread's routes overlap: blocks {before.first}-{before.last} and {after.first}-{after.last}.",
            why="Tokens that one has dropped are not there for the other.",
            fix=f"Set tread.{before.settings[1]} below {after.first} or tread.{after.settings[0]} above {before.last}.",
        )
        for before, after in pairwise(ordered)
        if after.first <= before.last
    ]
