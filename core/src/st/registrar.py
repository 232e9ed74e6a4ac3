"""Registrar: strategies that users choose by name, whoever brings them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from st.errors import PluginError
from st.options import Options
from st.spelling import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

BuildT = TypeVar("BuildT", bound=Callable[..., Any])
BuiltAs = TypeVar("BuiltAs", bound=Callable[..., Any], contravariant=True)


@dataclass(frozen=True, slots=True)
class StrategyKind(Generic[BuiltAs]):
    """A kind of thing that is chosen by name. The part of st that calls what is built declares it.

    The type parameter is how a strategy of this kind is built. traits: what may be said of a strategy; the kind's owner
    says what each promises. A plugin may declare a kind of its own and look its strategies up.
    """

    name: str
    traits: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Choice:
    """A strategy that was chosen: ``choice.build(choice.options)``, with what else its kind takes before them."""

    kind: str
    options: Options
    build: Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Strategy:
    """A strategy that can be chosen. kind: its kind's name. owner: the package or plugin that brought it."""

    kind: str
    name: str
    build: Callable[..., Any]
    options: type[Options]
    owner: str
    traits: frozenset[str] = frozenset()


class Registrar:
    """Adds strategies that users choose by name: ``[optimizer] kind = "mine"``.

    ``build`` and the Options class must be importable without torch. Two owners that claim one name
    are an error naming both.
    """

    def __init__(self) -> None:
        self._strategies: dict[tuple[str, str], Strategy] = {}
        self._owner = "st"

    @contextmanager
    def owned_by(self, owner: str) -> Iterator[Registrar]:
        """For the length of a ``with``, what is added belongs to ``owner``."""
        before, self._owner = self._owner, owner
        try:
            yield self
        finally:
            self._owner = before

    def add(
        self,
        kind: StrategyKind[BuildT],
        name: str,
        build: BuildT,
        options: type[Options],
        *,
        traits: Collection[str] = (),
    ) -> None:
        """Add a strategy: ``build`` is called as its kind says, with an instance of ``options`` among the arguments.

        Raises PluginError where another owner has the name, and for a trait that the kind does not have.
        """
        claimed = self._strategies.get((kind.name, name))
        if claimed is not None:
            raise PluginError(
                f"{kind.name} {name!r} is claimed by {claimed.owner} and by {self._owner}.",
                fix="Take one of them out of plugins.",
            )
        if unknown := sorted(set(traits) - kind.traits):
            known = ", ".join(sorted(kind.traits)) or "none"
            raise PluginError(
                f"{kind.name} {name!r} of {self._owner}: no trait {unknown[0]!r}.", fix=f"There are: {known}."
            )
        self._strategies[kind.name, name] = Strategy(kind.name, name, build, options, self._owner, frozenset(traits))

    def get(self, kind: str, name: str) -> Strategy | None:
        """The strategy of this name, or None."""
        return self._strategies.get((kind, name))

    def lookup(self, kind: str, name: str) -> Strategy:
        """The strategy of this name. Raises PluginError with the closest names and the list of all."""
        found = self.get(kind, name)
        if found is None:
            names = self.names(kind)
            what = " ".join(filter(None, (f"no {kind} is named {name!r}.", did_you_mean(name, names))))
            none = f"None of the plugins that the run names brings a {kind}; add the one that does to plugins."
            raise PluginError(what, fix=f"There are: {', '.join(names)}." if names else none)
        return found

    def names(self, kind: str) -> list[str]:
        """The names of this kind, sorted."""
        return sorted(name for of, name in self._strategies if of == kind)

    def strategies(self) -> list[Strategy]:
        """Every strategy, in the order in which they were added."""
        return list(self._strategies.values())
