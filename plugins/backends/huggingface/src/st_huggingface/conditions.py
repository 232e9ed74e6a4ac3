"""Conditions on columns of a table, as a run file writes them: ``score >= 5.5``. Read without importing pyarrow."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from st.errors import DataUnusable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

_FORM = re.compile(r"\s*([^\s<>=!]+)\s*(==|!=|<=|>=|<|>|\bin\b)\s*(.+)")
_COMPARISONS = {
    "==": "equal",
    "!=": "not_equal",
    "<=": "less_equal",
    ">=": "greater_equal",
    "<": "less",
    ">": "greater",
}
"""Comparisons, and what arrow calls them."""


class Condition(NamedTuple):
    """column: dotted where it is inside a struct. value: a number or a text; a list of them for ``in``."""

    column: str
    comparison: str
    value: Any

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Raises ValueError for what is no condition."""
        match = _FORM.fullmatch(text)
        try:
            value = ast.literal_eval(match[3]) if match else None
        except (ValueError, SyntaxError):
            value = None
        if match is None or value is None or (match[2] == "in") != isinstance(value, list | tuple):
            raise ValueError(f"{text!r} is no condition such as \"score >= 5.5\" or \"kind in ['photo', 'film']\"")
        return cls(match[1], match[2], value)

    def holds(self, table: pa.Table) -> pa.Array:
        """Which rows it holds for, as booleans; false where the column has no value. Raises DataUnusable."""
        import pyarrow as pa
        import pyarrow.compute as pc

        values = column(table, self.column)
        try:
            if self.comparison == "in":
                found = pc.is_in(values, value_set=pa.array(self.value).cast(values.type))
            else:
                found = pc.call_function(_COMPARISONS[self.comparison], [values, pa.scalar(self.value)])
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            raise DataUnusable(f"filters: column {self.column!r} cannot be compared so: {error}") from error
        return pc.fill_null(found, False)


def column(table: pa.Table, name: str) -> Any:
    """A column, or a field of a struct in one (``json.caption``). Raises DataUnusable naming the columns that exist."""
    import pyarrow as pa
    import pyarrow.compute as pc

    first, *inside = [name] if name in table.column_names else name.split(".")
    try:
        found = table[first]
        for field in inside:
            found = pc.struct_field(found, field)
    except (KeyError, pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
        raise missing(name, table.column_names) from None
    return found


def missing(name: str, names: Sequence[str]) -> DataUnusable:
    """There is no such column."""
    return DataUnusable(f"the data set has no column {name!r}.", fix=f"Columns: {', '.join(names) or 'none'}.")
