"""Commands that packages add: listed from metadata alone, and imported when they are typed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from st.cli import HELP

if TYPE_CHECKING:
    from st.plugins.catalogue import Catalogue


def described(catalogue: Catalogue) -> dict[str, str]:
    """What is typed for each command of a package, and its line in the help text: the package's own summary.

    One that several packages have, or st itself, is typed with its package's name before it.
    """
    lines: dict[str, str] = {}
    for name, found in catalogue.commands().items():
        alone = len(found) == 1 and name not in HELP
        for plugin in found:
            typed = name if alone else f"{plugin.distribution}:{name}"
            lines[typed] = f"{plugin.summary.rstrip('.') or 'No summary'} ({plugin.distribution})."
    return lines


def load_command(name: str, catalogue: Catalogue) -> Any:
    """The command that a package has under this name; None where none has, installed or not. Raises PluginError."""
    from st.plugins.loading import command_of, load

    if "commands" not in catalogue.kinds(name.rpartition(":")[2]):
        return None
    return command_of(name, load(catalogue.command(name)))
