"""Registrar: strategies that users choose by name, whoever brings them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from st.errors import PluginError
from st.options import Options
from st.spelling import did_you_mean

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch
    from torch.optim import Optimizer

    from st.data.backend import DataBackend
    from st.diffusion.density import Density
    from st.diffusion.distance import Distance
    from st.diffusion.sampler import Sampler
    from st.diffusion.weighting import Weighting
    from st.model.adapter import Adapter
    from st.model.family import ModelFamily
    from st.model.quantizer import Quantizer
    from st.report.tracker import Tracker
    from st.report.validation import Validator
    from st.train.ranks import Ranks, RanksOptions
    from st.train.schedule import Schedule

    ParamGroup = dict[str, Any]

StrategyKind = Literal[
    "optimizer",
    "schedule",
    "quantizer",
    "adapter",
    "density",
    "weighting",
    "distance",
    "sampler",
    "validator",
    "engine",
    "family",
    "backend",
    "tracker",
]
OptionsT = TypeVar("OptionsT", bound=Options)


@dataclass(frozen=True, slots=True)
class Choice:
    """A strategy that was chosen: ``choice.build(choice.options)``, with what else its kind takes before them."""

    kind: str
    options: Options
    build: Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Strategy:
    """A strategy that can be chosen. owner: the package or plugin that brought it.

    elementwise: of an optimizer, splits: of an engine, as ``Registrar.optimizer`` and ``.engine`` say.
    """

    kind: StrategyKind
    name: str
    build: Callable[..., Any]
    options: type[Options]
    owner: str
    elementwise: bool = False
    splits: bool = False


class Registrar:
    """Adds strategies that users choose by name: ``[optimizer] kind = "mine"``.

    ``build`` and the Options class must be importable without torch. Two owners that claim one name
    are an error naming both.
    """

    def __init__(self) -> None:
        self._strategies: dict[tuple[StrategyKind, str], Strategy] = {}
        self._owner = "st"

    @contextmanager
    def owned_by(self, owner: str) -> Iterator[Registrar]:
        """For the length of a ``with``, what is added belongs to ``owner``."""
        before, self._owner = self._owner, owner
        try:
            yield self
        finally:
            self._owner = before

    def optimizer(
        self,
        name: str,
        build: Callable[[Sequence[ParamGroup], OptionsT], Optimizer],
        options: type[OptionsT],
        *,
        elementwise: bool = False,
    ) -> None:
        """``[optimizer] kind``: ``build(groups, options)``.

        elementwise: each weight's step depends on that weight's own gradients and state alone, and state is tensors of
        the parameter's shape or scalars. Only such an optimizer gives the same on parts of parameters, which is what
        engines that split weights hand it.
        """
        self._add("optimizer", name, build, options, elementwise=elementwise)

    def schedule(
        self, name: str, build: Callable[[Optimizer, OptionsT, int], Schedule], options: type[OptionsT]
    ) -> None:
        """``[schedule] kind``: ``build(optimizer, options, total_steps)``."""
        self._add("schedule", name, build, options)

    def quantizer(self, name: str, build: Callable[[OptionsT], Quantizer], options: type[OptionsT]) -> None:
        """``[quantizer] kind``."""
        self._add("quantizer", name, build, options)

    def adapter(self, name: str, build: Callable[[OptionsT], Adapter], options: type[OptionsT]) -> None:
        """``[adapter] kind``."""
        self._add("adapter", name, build, options)

    def density(self, name: str, build: Callable[[OptionsT], Density], options: type[OptionsT]) -> None:
        """``[density] kind``: how training times are drawn."""
        self._add("density", name, build, options)

    def weighting(self, name: str, build: Callable[[OptionsT], Weighting], options: type[OptionsT]) -> None:
        """``[weighting] kind``: how much each time counts."""
        self._add("weighting", name, build, options)

    def distance(self, name: str, build: Callable[[OptionsT], Distance], options: type[OptionsT]) -> None:
        """``[distance] kind``: how far a prediction is from its target."""
        self._add("distance", name, build, options)

    def sampler(self, name: str, build: Callable[[OptionsT], Sampler], options: type[OptionsT]) -> None:
        """How noise is integrated to a sample."""
        self._add("sampler", name, build, options)

    def validator(self, name: str, build: Callable[[OptionsT], Validator], options: type[OptionsT]) -> None:
        """``[[validator]] kind``: what is measured during training."""
        self._add("validator", name, build, options)

    def engine(
        self,
        name: str,
        build: Callable[[torch.device, RanksOptions], Ranks],
        options: type[Options],
        *,
        splits: bool = False,
    ) -> None:
        """``[ranks] engine``: how several devices work on one run: ``build(device, options)``.

        splits: weights or optimizer state lie in parts on the ranks; what needs them whole is refused beforehand.
        """
        self._add("engine", name, build, options, splits=splits)

    def family(self, name: str, cls: type[ModelFamily[Any]]) -> None:
        """A model family made at run time, named in ``plugins``."""
        self._add("family", name, cls, cls.Options)

    def backend(self, name: str, cls: type[DataBackend]) -> None:
        """A data backend; ``name`` is the scheme of the urls it reads."""
        self._add("backend", name, cls, cls.Options)

    def tracker(self, name: str, cls: type[Tracker]) -> None:
        """A tracker made at run time, named in ``plugins``."""
        self._add("tracker", name, cls, cls.Options)

    def _add(
        self,
        kind: StrategyKind,
        name: str,
        build: Callable[..., Any],
        options: type[Options],
        *,
        elementwise: bool = False,
        splits: bool = False,
    ) -> None:
        claimed = self._strategies.get((kind, name))
        if claimed is not None:
            raise PluginError(
                f"{kind} {name!r} is claimed by {claimed.owner} and by {self._owner}.",
                fix="Take one of them out of plugins.",
            )
        self._strategies[kind, name] = Strategy(kind, name, build, options, self._owner, elementwise, splits)

    def get(self, kind: StrategyKind, name: str) -> Strategy | None:
        """The strategy of this name, or None."""
        return self._strategies.get((kind, name))

    def lookup(self, kind: StrategyKind, name: str) -> Strategy:
        """The strategy of this name. Raises PluginError with the closest names and the list of all."""
        found = self.get(kind, name)
        if found is None:
            names = self.names(kind)
            what = " ".join(filter(None, (f"no {kind} is named {name!r}.", did_you_mean(name, names))))
            raise PluginError(what, fix=f"There are: {', '.join(names)}." if names else f"No plugin brings a {kind}.")
        return found

    def names(self, kind: StrategyKind) -> list[str]:
        """The names of this kind, sorted."""
        return sorted(name for of, name in self._strategies if of == kind)

    def strategies(self) -> list[Strategy]:
        """Every strategy, in the order in which they were added."""
        return list(self._strategies.values())
