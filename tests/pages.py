"""Pages: the fenced blocks of a Markdown page, and the commands in them run in a folder of their own.

Mark-up, after the language of a fence:

- ```console: lines that begin with ``$ `` are commands, run in the order of the page; what follows is what they print.
  ``...`` stands for any text, and on a line of its own for any lines. Without output below it, a command only has to
  succeed. ``exit=2`` on the fence: the last command ends with that status.
- ```console steps=4: runs of this block are that long here, whatever their run files say.
- ```console session=demo: not run here; the nox session of that name is what runs it.
- ```toml file=run.toml, ```python file=mine.py: written to the page's folder, and shown to be valid.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from warm import run_st

SHELL = frozenset("|&;<>$`*")
"""What only a shell understands."""

FENCE = re.compile(r"^(`{3,})([^\n]*)\n(.*?)^\1[ \t]*$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block. tags: what follows the language, ``file=x`` as name and value. line: of the opening fence."""

    language: str
    tags: dict[str, str]
    text: str
    line: int


@dataclass(frozen=True, slots=True)
class Command:
    """A command of a page and the output below it."""

    line: str
    output: str


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        language, *tags = shlex.split(match[2]) or [""]
        pairs = dict(tag.partition("=")[::2] for tag in tags)
        found.append(Block(language, pairs, match[3], text.count("\n", 0, match.start()) + 1))
    return found


def commands(block: Block) -> list[Command]:
    """The commands of a console block; a line that ends with a backslash goes on."""
    found: list[Command] = []
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        lines = part.splitlines()
        count = 1 + next(index for index, line in enumerate(lines) if not line.endswith("\\"))
        found.append(Command("\n".join(lines[:count]), "\n".join(lines[count:]).strip("\n")))
    return found


def run_page(page: Path, folder: Path, root: Path) -> list[str]:
    """Run everything that a page shows; what went otherwise than it says."""
    for name in ("demo", "docs"):
        (folder / name).symlink_to(root / name)
    wrong: list[str] = []
    for block in blocks(page):
        if "file" in block.tags:
            name = block.tags["file"]
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(block.text, encoding="utf-8")
        elif block.language == "console" and "session" not in block.tags:
            wrong += [f"{page.name}:{block.line}: {sentence}" for sentence in _run_block(block, folder)]
        if wrong:
            # What comes after stands on it.
            return wrong
    return wrong


def _run_block(block: Block, folder: Path) -> list[str]:
    # The commands of this environment, also where it is not the one that the shell has active.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"COLUMNS": "120", "NO_COLOR": "1", "HF_HUB_OFFLINE": "1", "PATH": path}
    if "steps" in block.tags:
        environment["ST_STEPS"] = block.tags["steps"]
    expected = commands(block)
    for number, command in enumerate(expected, start=1):
        code, printed = _run(command.line, folder, environment)
        status = int(block.tags.get("exit", "0")) if number == len(expected) else 0
        if code != status:
            return [f"{command.line!r} ended with {code}:\n{printed}"]
        if command.output and not is_like(printed, command.output):
            return [f"{command.line!r} printed:\n{printed}\nthe page says:\n{command.output}"]
    return []


def _run(line: str, folder: Path, environment: Mapping[str, str]) -> tuple[int, str]:
    """The exit status of one command line, and what it printed."""
    if line.startswith("st train ") and not SHELL.intersection(line):
        return run_st(shlex.split(line)[1:], folder, environment)
    done = subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return done.returncode, done.stdout


def is_like(printed: str, shown: str) -> bool:
    """Whether output is what a page shows, trailing blanks aside. ``...`` stands for any text."""
    pattern = r"\n".join(
        r"(?:.*)" if line.strip() == "..." else ".*?".join(re.escape(part) for part in line.rstrip().split("..."))
        for line in shown.strip("\n").splitlines()
    )
    lines = "\n".join(line.rstrip() for line in printed.strip("\n").splitlines())
    # A line of dots may stand for no line at all, together with one of its line ends.
    pattern = (
        pattern.replace(r"\n(?:.*)\n", r"\n(?:.*\n)?")
        .replace(r"\n(?:.*)", r"(?:\n.*)?")
        .replace(r"(?:.*)\n", r"(?:.*\n)?")
    )
    return re.fullmatch(pattern, lines, re.DOTALL) is not None
