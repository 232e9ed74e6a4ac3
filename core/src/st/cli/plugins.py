"""``st plugins``: what is installed, whether it works, and why a name means what it means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from st.cli.printing.say import say

if TYPE_CHECKING:
    from st.plugins.catalogue import Installed

Name = Annotated[str, typer.Argument(help="A plugin's name.", show_default=False)]


def plugins() -> None:
    """List the plugins that are installed and those of ours that are not."""
    import st
    from st.cli.printing.table import print_table
    from st.installing import install_command
    from st.plugins.catalogue import Catalogue

    catalogue = Catalogue.scan()
    rows = [
        (plugin.name, plugin.kind, f"{plugin.distribution} {plugin.version}", _state(plugin, st.API[0]))
        for plugin in catalogue.everything
    ]
    present = {(plugin.kind, plugin.name) for plugin in catalogue.everything}
    absent = [plugin for plugin in catalogue.known if (plugin.kind, plugin.name) not in present]
    rows += [(known.name, known.kind, known.distribution, "not installed") for known in absent]
    print_table(("plugin", "kind", "package", ""), rows)
    if absent:
        say(f"To install one: {install_command(absent[0].distribution)}")


def _state(plugin: Installed, api: int) -> str:
    from st.cli import HELP

    if plugin.api != api:
        return f"speaks plugin API {plugin.api}, not {api}: cannot be used"
    if plugin.kind == "commands" and plugin.name in HELP:
        return f"st has a command of this name: type st {plugin.distribution}:{plugin.name}"
    return ""


def check(
    name: Annotated[str, typer.Argument(help="A plugin, or a file: ./mine.py:Mine. All without it.")] = "",
) -> None:
    """Import plugins, each in a process of its own, and say whether they keep what every plugin promises.

    With a name, shows the traceback of what goes wrong. Ends with 2 where something does.
    """
    import subprocess
    import sys

    from st.cli.printing.table import print_table
    from st.plugins.catalogue import Catalogue

    names = [name] if name else [f"{plugin.kind}:{plugin.name}" for plugin in Catalogue.scan().usable]
    rows, failed = [], False
    for each in names:
        command = [sys.executable, "-P", "-m", "st.plugins.checking", each, *(["--traceback"] if name else [])]
        done = subprocess.run(command, capture_output=True, text=True)
        failed = failed or done.returncode != 0
        if name:
            say(done.stdout + done.stderr, nl=False)
        else:
            rows.append((each.partition(":")[2], each.partition(":")[0], (done.stdout or done.stderr).strip()))
    if not name:
        print_table(("plugin", "kind", "result"), rows)
    if failed:
        raise typer.Exit(2)


def why(name: Name) -> None:
    """Say what a plugin's name stands for, where that is installed, and how it takes part in a run."""
    from importlib.metadata import distribution

    from st.plugins.catalogue import Catalogue

    plugin = Catalogue.scan().find(name)
    say(f"{plugin.label} is the class {plugin.target}.")
    say(f"Installed in {distribution(plugin.distribution).locate_file('')}.")
    if plugin.kind == "commands":
        say(f"It is typed: st {plugin.name}")
    elif plugin.kind == "backends":
        say(f'It takes part in runs that have a data set with url = "{plugin.name}:...".')
    else:
        say(f'It takes part in runs that name it: --plugins {plugin.name}, or plugins = ["{plugin.name}"].')


COMMANDS = (plugins, check, why)
