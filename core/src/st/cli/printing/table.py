"""Tables on standard output."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from st.terminal import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

WIDE = 1000
"""Columns where nobody looks at a terminal: a table that a program reads is never wrapped."""


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> None:
    """Print rows under a title and headings, each column as wide as its longest cell."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_header=any(columns))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else WIDE, highlight=False)
    if title:
        console.print(title)
    console.print(table)
