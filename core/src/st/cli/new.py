"""``st new``: a complete plugin package to start from, whose tests pass as it is."""

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from st.cli.printing.say import say
from st.errors import StError

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


class Kind(StrEnum):
    """What a plugin is; the template of the same name is copied."""

    MODEL = "model"
    BACKEND = "backend"
    TRACKER = "tracker"
    HOOK = "hook"
    COMMAND = "command"


def new(
    kind: Annotated[Kind, typer.Argument(help="What the plugin is.")],
    name: Annotated[str, typer.Argument(help="What run files, or users, call it: lower case, with hyphens.")],
    directory: Annotated[Path | None, typer.Argument(help="Folder to write; st-NAME if not given.")] = None,
) -> None:
    """Write a plugin package that can be installed, tested and published as it is."""
    words = _words(name, kind)
    folder = directory or Path(words["DISTRIBUTION"])
    files = write(kind, words, folder)
    say(f"wrote {len(files)} files to {folder}")
    say("\nnext:")
    say(f"  cd {folder}")
    say('  python -m pip install -e ".[testing]"')
    say("  python -m pytest")


def write(kind: Kind, words: dict[str, str], folder: Path) -> list[Path]:
    """Copy a template into a new or empty folder, its placeholders replaced; the files written."""
    from importlib.resources import as_file, files

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StError(f"{str(folder)!r} exists already.", fix="Name another folder.")
    written = []
    with as_file(files("st") / "templates" / kind.value) as template:
        for source in sorted(template.rglob("*")):
            inside = source.relative_to(template)
            # Caches of tools that looked at the template are not part of it.
            if source.is_file() and not any(part.startswith((".", "__pycache__")) for part in inside.parts):
                target = folder / _filled(str(inside), words)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(_filled(source.read_text(encoding="utf-8"), words), encoding="utf-8")
                written.append(target)
    return written


def _words(name: str, kind: Kind) -> dict[str, str]:
    """What the placeholders of a template stand for. Raises StError for a name that no package could have."""
    from st.cli import HELP
    from st.settings.config import RunOptions, section_names

    if not NAME.fullmatch(name):
        raise StError(
            f"{name!r} cannot be a plugin's name.",
            why="A name is lower case: letters, digits and single hyphens, a letter first.",
            fix=_suggestion(name),
        )
    if name.startswith("st-"):
        plain = name.removeprefix("st-")
        raise StError(f"{name!r}: the package is called st-NAME without being told.", fix=f"Try {plain!r}.")
    if kind is Kind.COMMAND and name in HELP:
        raise StError(f"{name!r} is a command of st already.", fix=f"Try 'my-{name}'.")
    if kind is not Kind.COMMAND and (name in section_names() or name in RunOptions.model_fields):
        raise StError(f"{name!r} is a section of run files already.", fix=f"Try 'my-{name}'.")
    return {
        "DISTRIBUTION": f"st-{name}",
        "PACKAGE": f"st_{name.replace('-', '_')}",
        "PLUGIN": name,
        "CLASS": "".join(part.capitalize() for part in name.split("-")),
    }


def _suggestion(name: str) -> str:
    close = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-").lstrip("0123456789-")
    return f"Try {close!r}." if NAME.fullmatch(close) else ""


def _filled(text: str, words: dict[str, str]) -> str:
    for placeholder, word in words.items():
        text = text.replace(placeholder, word)
    return text


COMMANDS = (new,)
