"""The arguments of every command that works on a run file."""

from pathlib import Path
from typing import Annotated

import typer

RunFile = Annotated[Path, typer.Argument(help="The run file, TOML or JSON.", show_default=False)]
PluginNames = Annotated[
    list[str] | None,
    typer.Option("--plugins", help="Plugins to add to the file's, comma-separated; no:NAME takes one away."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting over the file's: KEY=VALUE, as in --set optimizer.lr=1e-4."),
]
