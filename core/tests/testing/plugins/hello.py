"""Hello: the smallest command."""

from __future__ import annotations

from typing import Annotated

import typer


class Hello:
    """Say hello."""

    @staticmethod
    def command(name: Annotated[str, typer.Argument(help="To whom.")] = "world") -> None:
        typer.echo(f"hello {name}")
