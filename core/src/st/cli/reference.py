"""``st reference``: options, hooks, public names and the schema of run files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from st.cli.runfile import PluginNames


def options(
    names: Annotated[
        list[str] | None, typer.Argument(help="Plugins, or sections such as optimizer. All of the core without any.")
    ] = None,
) -> None:
    """Print tables of options."""
    from st.settings.reference import options_page

    typer.echo(options_page(names or ()), nl=False)


def hooks() -> None:
    """Print every hook, in the order in which a run calls them."""
    from st.settings.reference import hooks_page

    typer.echo(hooks_page(), nl=False)


def nouns(
    modules: Annotated[list[str] | None, typer.Argument(help="Modules such as st.testing; all without any.")] = None,
) -> None:
    """Print every public name with its signature, shapes, units and errors."""
    from st.settings.reference import page

    typer.echo(page(" ".join(["nouns", *(modules or ())])), nl=False)


def schema(
    file: Annotated[Path | None, typer.Argument(help="A run file whose plugins are active.")] = None,
    plugins: PluginNames = None,
) -> None:
    """Print the JSON schema of run files, for editors."""
    import json

    from st.plugins.activation import plugin_names
    from st.reading.runfile import read
    from st.settings.reference import describe
    from st.settings.schema import run_file_schema

    listed = read(file).data.get("plugins", []) if file else []
    names, _ = plugin_names(listed, plugins or ())
    typer.echo(json.dumps(run_file_schema(describe(names)), indent=2))


def blocks(
    files: Annotated[list[Path], typer.Argument(help="Files with <!-- generated: st reference ... --> blocks.")],
    write: Annotated[
        bool, typer.Option("--write/--check", help="Bring blocks up to date, or say which are not.")
    ] = False,
) -> None:
    """Check, or write, the generated blocks of files. Ends with 1 where one is out of date."""
    from st.settings.reference import filled

    stale = []
    for file in files:
        before = file.read_text(encoding="utf-8")
        after = filled(before)
        if after != before:
            stale.append(file)
            if write:
                file.write_text(after, encoding="utf-8")
    for file in stale:
        typer.echo(f"{file}: {'written' if write else 'out of date: st reference blocks --write'}")
    if stale and not write:
        raise typer.Exit(1)


COMMANDS = (options, hooks, nouns, schema, blocks)
