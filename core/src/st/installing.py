"""Installing: the command that brings a package into the environment that st runs in."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

CORE = "st-core"


def install_command(distribution: str, *options: str, extra: str = "") -> str:
    """``pip install st-NAME``; where st is installed from a clone that has the package, with its folder there.

    options: further words for pip. extra: of the package, ``clips``. Names the interpreter where the first ``pip`` on
    the path is another environment's.
    """
    clone = clone_of(CORE)
    folder = _folder(clone, distribution) if clone is not None else None
    ending = f"[{extra}]" if extra else ""
    words: list[str] = [*_pip(), "install", *options]
    if clone is None or folder is None:
        words.append(f"{distribution}{ending}")
    else:
        pins = clone / "constraints.txt"
        words += [
            *(["-c", _from_here(pins, clone)] if pins.is_file() else []),
            "-e",
            f"{_from_here(folder, clone)}{ending}",
        ]
    return shlex.join(words)


def clone_of(distribution: str) -> Path | None:
    """The clone whose folder a distribution was installed from; None for one that came from elsewhere."""
    from urllib.request import url2pathname

    try:
        text = metadata.distribution(distribution).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    url = urlsplit(json.loads(text)["url"] if text else "")
    if url.scheme != "file":
        return None
    root = Path(url2pathname(url.path)).parent
    return root if (root / "plugins").is_dir() else None


def _folder(clone: Path, distribution: str) -> Path | None:
    for file in (clone / "core" / "pyproject.toml", *sorted(clone.glob("plugins/*/*/pyproject.toml"))):
        if file.is_file() and tomllib.loads(file.read_text(encoding="utf-8"))["project"]["name"] == distribution:
            return file.parent
    return None


def _from_here(path: Path, clone: Path) -> str:
    """Short for those who are in the clone, and right for those who are not."""
    return path.relative_to(clone).as_posix() if Path.cwd() == clone else str(path)


def _pip() -> list[str]:
    first, own = shutil.which("pip"), Path(sys.executable).parent
    return ["pip"] if first is not None and Path(first).parent == own else [sys.executable, "-m", "pip"]
