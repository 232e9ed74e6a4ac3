"""``st config``: what a run file means."""

from __future__ import annotations

from typing import Annotated

import typer

from st.cli.printing.say import say
from st.cli.runfile import Overrides, PluginNames, RunFile


def show(
    file: RunFile,
    plugins: PluginNames = None,
    overrides: Overrides = None,
    origin: Annotated[bool, typer.Option("--origin", help="Also say where each value was written.")] = False,
) -> None:
    """Print every setting of a run as a run file: those that were written and those at their defaults."""
    from st.cli.printing.plan import settings
    from st.reading.runfile import dotted
    from st.reading.toml import value_text
    from st.settings.assembly import assemble
    from st.settings.config import RunOptions

    config, _ = assemble(file, plugins or (), overrides or ())
    section: tuple[str | int, ...] = ()
    for location, value, written in settings(config):
        *table, key = location
        if table and tuple(table) != section:
            section = tuple(table)
            say(f"\n[[{section[0]}]]" if isinstance(section[-1], int) else f"\n[{dotted(section)}]")
        # TOML has no null: what is not set is shown as a comment.
        line = f"{key} = {value_text(value)}"
        if value is None:
            line = f"# {key} is not set" if table or key in RunOptions.model_fields else f"\n# [{key}] is off"
        say(f"{line}  # {written}" if origin else line)


COMMANDS = (show,)
