"""What is combined with what: the rows of combinations.toml and what plugins bring besides, as cells of a table."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from st.errors import StError
from st.plugins.catalogue import Catalogue
from st.settings.reference import describe

ROWS = Path(__file__).with_name("combinations.toml")
AXES = ("adapter", "technique", "quantizer")


@dataclass(frozen=True)
class Row:
    """One choice on one axis. kind: the strategy that it stands for, '' for a technique."""

    name: str
    kind: str = ""
    plugins: tuple[str, ...] = ()
    text: str = ""
    dataset: str = ""


@dataclass(frozen=True)
class Cell:
    """One combination. A row that is None is left out of the run."""

    family: str
    adapter: Row
    technique: Row | None = None
    quantizer: Row | None = None

    @property
    def rows(self) -> tuple[Row, ...]:
        return tuple(row for row in (self.adapter, self.technique, self.quantizer) if row is not None)

    @property
    def name(self) -> str:
        return f"{self.family} + {self.rest}"

    @property
    def rest(self) -> str:
        """The name without the family's."""
        return " + ".join(row.name for row in self.rows)


@dataclass(frozen=True)
class Verdict:
    """How a combination fared, and why, in one line."""

    status: Literal["works", "refused", "fails"]
    reason: str = ""


@dataclass
class Axes:
    """Every row that can be tried here: those of the file whose plugins are installed, and what plugins bring besides.

    absent: plugins that cannot be loaded, and why.
    """

    rows: dict[str, list[Row]] = field(default_factory=lambda: {axis: [] for axis in AXES})
    absent: dict[str, str] = field(default_factory=dict)

    @classmethod
    def discover(cls) -> Axes:
        catalogue, axes = Catalogue.scan(), cls()
        installed = catalogue.names("hooks")
        brought = list(_brought(installed, catalogue, axes.absent))
        listed = tomllib.loads(ROWS.read_text(encoding="utf-8"))
        for axis in AXES:
            rows = [Row(**{**row, "plugins": tuple(row.get("plugins", ()))}) for row in listed.get(axis, ())]
            usable = {*installed} - axes.absent.keys()
            axes.rows[axis] = [row for row in rows if usable.issuperset(row.plugins)]
            shown = {row.kind for row in rows}
            for kind, name, plugin in brought:
                if kind == axis and name not in shown:
                    # Layers of tiny checkpoints are smaller than any that is worth quantizing.
                    more = "\nsmallest = 64" if axis == "quantizer" else ""
                    axes.rows[axis].append(Row(name, name, (plugin,), f'[{axis}]\nkind = "{name}"{more}'))
        return axes

    def cells(self, families: Iterable[str]) -> Iterator[Cell]:
        """Every adapter alone; techniques and quantizers with LoRA and full, quantizers with LoftQ; pairs with LoRA."""
        adapters, techniques, quantizers = (self.rows[axis] for axis in AXES)
        plain = [row for row in adapters if row.name in ("LoRA", "full")]
        made_for = [row for row in adapters if row.name == "LoRA, LoftQ"]
        for family in families:
            yield from (Cell(family, adapter) for adapter in adapters)
            yield from (Cell(family, adapter, technique=row) for adapter in plain for row in techniques)
            yield from (Cell(family, adapter, quantizer=row) for adapter in (*plain, *made_for) for row in quantizers)
            yield from (Cell(family, plain[0], one, other) for one in techniques for other in quantizers)


def _brought(names: Iterable[str], catalogue: Catalogue, absent: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """(kind, name, plugin) of the adapters and quantizers that hooks register."""
    for name in names:
        try:
            described = describe([name], catalogue)
        except StError as error:
            absent[name] = error.what
            continue
        owner = described.plugins[0][0].label
        for strategy in described.registrar.strategies():
            if strategy.owner == owner and strategy.kind in AXES:
                yield strategy.kind, strategy.name, name
