"""What commands print: file names, captions and keys of others come through as text and never as orders."""

from __future__ import annotations

import typer

from st.terminal import printable


def say(text: object = "", *, nl: bool = True, err: bool = False) -> None:
    """Print on standard output, or standard error, what may hold text of others."""
    typer.echo(printable(str(text)), nl=nl, err=err)
