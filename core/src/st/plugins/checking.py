"""Checking one plugin in a process of its own: ``python -m st.plugins.checking NAME [--traceback]``."""

from __future__ import annotations

import sys
import traceback

from pydantic import ValidationError

from st.errors import StError
from st.plugins.activation import hook_manager
from st.plugins.builtin import Builtin
from st.plugins.catalogue import Catalogue
from st.plugins.loading import at_border, command_of, is_local, load, load_local
from st.registrar import Registrar

HEAVY = ("torch", "numpy", "diffusers", "transformers", "accelerate")
"""Libraries that a plugin may import when it works, and not when it is imported."""


def check(name: str) -> str:
    """Load a plugin, make it with default options where it has them, and call its st_register; one line on how it went.

    Raises PluginError.
    """
    installed, cls = load_local(name) if is_local(name) else (Catalogue.scan().find(name), None)
    if cls is None:
        cls = load(installed)
    notes = [f"imports {library} at once, which slows every command" for library in HEAVY if library in sys.modules]
    if installed.kind == "commands":
        at_border(installed, "is no command line", lambda: command_of(installed.name, cls))
    elif installed.kind != "backends":
        try:
            options = cls.Options()
        except ValidationError:
            notes.append("not made: its options have no defaults")
        else:
            instance = at_border(installed, "cannot be made", lambda: cls(options))
            pm = hook_manager([("st", Builtin()), (installed.name, instance)])
            at_border(installed, "failed in st_register", lambda: pm.hook.st_register(register=Registrar()))
    return "; ".join(["ok", *notes])


def main() -> int:
    """Print how the plugin named on the command line fares; 2 where it cannot be used."""
    name, show = sys.argv[1], "--traceback" in sys.argv[2:]
    try:
        print(check(name))
    except StError as error:
        if show and error.__cause__ is not None:
            traceback.print_exception(error.__cause__)
        print(error if show else error.what, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
