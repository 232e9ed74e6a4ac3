"""``st tiny``: a tiny checkpoint with random weights, for tests and first tries."""

import json
from pathlib import Path
from typing import Annotated

import typer

from st.cli.printing.say import say
from st.errors import StError


def tiny(
    family: Annotated[str, typer.Argument(help="A model plugin, or a file: ./mine.py:Mine.", show_default=False)],
    directory: Annotated[Path, typer.Argument(help="Folder to write; new or empty.", show_default=False)],
) -> None:
    """Write a tiny checkpoint of a family, with random weights, in the layout that the family loads."""
    from st.model.family import ModelFamily
    from st.plugins.catalogue import Catalogue
    from st.plugins.loading import is_local, load, load_local

    cls = load_local(family)[1] if is_local(family) else load(Catalogue.scan().find(family, "models"))
    if not issubclass(cls, ModelFamily):
        raise StError(f"{family!r} is not a model family.")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise StError(f"{str(directory)!r} exists already.", fix="Name another folder.")
    made = cls.tiny(directory)
    files = [file for file in sorted(directory.rglob("*")) if file.is_file()]
    for file in files:
        say(f"{file.stat().st_size / 1024:10.1f} KiB  {file.relative_to(directory)}")
    needed = {"checkpoint": str(directory), **made.options.model_dump(mode="json", exclude_defaults=True)}
    lines = "\n".join(f"  {name} = {json.dumps(value)}" for name, value in needed.items())
    say(f"\nuse it:\n  [model]\n{lines}")


COMMANDS = (tiny,)
