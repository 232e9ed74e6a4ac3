"""Checking one plugin in a process of its own: ``python -m st.plugins.checking NAME [--traceback]``."""

from __future__ import annotations

import sys
import traceback
from typing import get_args

from pydantic import ValidationError

from st.errors import PluginError, StError
from st.options import Options
from st.plugins.activation import hook_manager
from st.plugins.builtin import Builtin
from st.plugins.catalogue import Catalogue
from st.plugins.loading import at_border, command_of, is_local, load, load_local
from st.registrar import Registrar
from st.terminal import printable

HEAVY = ("torch", "numpy", "diffusers", "transformers", "accelerate")
"""Libraries that a plugin may import when it works, and not when it is imported."""


def check(name: str) -> str:
    """Load a plugin, make it with default options where it has them, and call its st_register; one line on how it went.

    Raises PluginError.
    """
    installed, cls = load_local(name) if is_local(name) else (Catalogue.scan().find(name), None)
    if cls is None:
        cls = load(installed)
    if installed.kind != "commands" and (bare := _without_help(cls.Options)):
        what = f"{installed.label}: {', '.join(bare)}: options without help."
        raise PluginError(
            what, fix="Write a docstring below each: what it does, in a sentence that ends with a period."
        )
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


def _without_help(options: type[Options], path: str = "") -> list[str]:
    """The options whose docstring is missing, in tables of options as well."""
    found = []
    for name, field in options.model_fields.items():
        if not (field.description or "").strip():
            found.append(f"{path}{name}")
        for nested in (field.annotation, *get_args(field.annotation)):
            if isinstance(nested, type) and issubclass(nested, Options):
                found += _without_help(nested, f"{path}{name}.")
    return found


def main() -> int:
    """Print how the plugin named on the command line fares; 2 where it cannot be used."""
    name, show = sys.argv[1], "--traceback" in sys.argv[2:]
    try:
        print(check(name))
    except StError as error:
        if show and error.__cause__ is not None:
            traceback.print_exception(error.__cause__)
        print(printable(str(error) if show else error.what), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
