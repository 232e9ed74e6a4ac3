"""CheckpointFolder: a model in diffusers' layout, in a folder or on the hub."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from st.data.store.weights_digest import weights_digest
from st.errors import StError
from st.jsonfile import read_object
from st.model.checkpoint.hub import download, is_repository
from st.spelling import listed

INDEX = "model_index.json"
MODULAR_INDEX = "modular_model_index.json"
ANY = "*"
"""Of a library: whichever of those that are known has the class."""
READ = (".json", ".safetensors", ".txt", ".model", ".jinja", ".spm")


@dataclass(frozen=True, slots=True)
class CheckpointFolder:
    """Where a model's components are. location: a folder with ``model_index.json``, or a repository ``owner/name``.

    index_name: of the file that says what the model is made of. parts: the class of each component; there is no index.
    From the hub only what is asked for is fetched, and never a pickle. Raises StError naming what is missing.
    """

    location: str
    revision: str = ""
    variant: str = ""
    index_name: str = INDEX
    parts: Mapping[str, str] = field(default_factory=dict)
    _found: dict[str, Path] = field(default_factory=dict, compare=False, repr=False)

    def is_here(self) -> bool:
        """Whether it is a folder of this machine. Raises StError where it is neither that nor a repository's name."""
        local = Path(self.location).expanduser()
        if not local.is_dir() and (local.is_file() or not is_repository(self.location)):
            self._fetch(INDEX, "")
        return local.is_dir()

    def index(self) -> Mapping[str, Any]:
        """What the model is made of: ``_class_name`` of its pipeline, and (library, class) by component."""
        return read_json(
            self._fetch(self.index_name, f"model.checkpoint = {self.location!r} is no checkpoint of diffusers")
        )

    def components(self) -> Mapping[str, str]:
        """The class of each component that is there."""
        if self.parts:
            return self.parts
        entries = {name: entry for name, entry in self.index().items() if isinstance(entry, list) and len(entry) > 1}
        found = {name: entry[1] or _hinted(entry) for name, entry in entries.items()}
        return {name: kind for name, kind in found.items() if kind}

    def entry(self, component: str) -> tuple[object, object]:
        """(library, class) of a component; ANY for a library that is not said, (None, None) where nothing is."""
        if self.parts:
            return (ANY, self.parts[component]) if component in self.parts else (None, None)
        entry = self.index().get(component)
        if self.index_name == MODULAR_INDEX and isinstance(entry, list) and len(entry) == 3:
            return (entry[0], entry[1]) if entry[1] else (ANY, _hinted(entry))
        return (entry[0], entry[1]) if isinstance(entry, list) and len(entry) == 2 else (None, None)

    def config(self, component: str) -> Mapping[str, Any]:
        """A component's settings, without its weights."""
        names = "scheduler_config.json" if component == "scheduler" else "config.json"
        return read_json(self._fetch(f"{component}/{names}", self._lacks(component)))

    def root(self, components: Sequence[str]) -> Path:
        """The folder, with these components in it."""
        known = self.components()
        for component in components:
            if component not in known:
                raise StError(
                    self._lacks(component), why=f"it names {listed(sorted(known))}", fix="name another checkpoint"
                )
            folder = self._fetch(f"{component}/*", self._lacks(component))
            weights = {path.suffix for path in folder.iterdir()}
            if weights & {".bin", ".pt", ".ckpt"} and ".safetensors" not in weights:
                raise StError(
                    f"{self._lacks(component)} in safetensors",
                    why="pickles can run any program when they are opened, so they are not",
                    fix="convert it with diffusers: from_pretrained(...).save_pretrained(...)",
                )
        if self.parts:
            return self._fetch(f"{components[0]}/*", "").parent if components else Path(self.location).expanduser()
        return self._fetch(self.index_name, "").parent

    def fingerprint(self, components: Sequence[str]) -> str:
        """Changes when a weight or a setting of these components does.

        See ``weights_digest``.
        """
        digest = hashlib.blake2b(digest_size=16)
        root = self.root(components)
        for component in components:
            for path in sorted((root / component).rglob("*")):
                if path.suffix in READ and self._is_ours(path.name):
                    digest.update(f"{path.relative_to(root)}\0{weights_digest(path)}\0".encode())
        return digest.hexdigest()

    def copy(self, directory: Path, without: str) -> None:
        """Everything but one component in a new folder; hard links where the file system can."""
        known = self.components()
        root = self.root([name for name in known if name != without])
        directory.mkdir(parents=True, exist_ok=True)
        if not self.parts:
            _copy_index(root / self.index_name, directory)
        for component in known:
            if component != without:
                shutil.copytree(root / component, directory / component, copy_function=_link, dirs_exist_ok=True)

    def _is_ours(self, name: str) -> bool:
        """Whether a file is of the chosen variant: ``model.fp16.safetensors`` is not, unless "fp16" was chosen."""
        match = re.fullmatch(r".*\.([^.]+)\.safetensors", re.sub(r"-\d{5}-of-\d{5}", "", name))
        return match is None or match[1] == self.variant

    def _lacks(self, component: str) -> str:
        return f"model.checkpoint = {self.location!r} has no {component!r}"

    def _fetch(self, pattern: str, what: str) -> Path:
        """The file, or for ``component/*`` the folder."""
        name = pattern.removesuffix("/*")
        local = Path(self.location).expanduser()
        if local.is_dir():
            if not (local / name).exists():
                raise StError(
                    what, why=f"there is no {name!r} in it", fix=f"name the folder that holds {self.index_name}"
                )
            return local / name
        if local.is_file():
            raise StError(
                f"model.checkpoint = {self.location!r} is a single file; folders in diffusers' layout are read",
                fix="name the folder or repository of the whole model; the denoiser's file goes into model.denoiser",
            )
        if not is_repository(self.location):
            raise StError(
                f"model.checkpoint = {self.location!r}: there is no such folder",
                fix="name a folder with model_index.json, or a repository on the hub as owner/name",
            )
        if pattern not in self._found:
            self._found[pattern] = self._download(pattern, what) / name
        return self._found[pattern]

    def _download(self, pattern: str, what: str) -> Path:
        wanted = [pattern.replace("/*", f"/*{suffix}") for suffix in READ] if pattern.endswith("/*") else [pattern]
        unwanted = [] if self.variant else ["*.fp16.*", "*.bf16.*", "*.non_ema.*"]
        root = download(self.location, self.revision, wanted, unwanted, "model.checkpoint")
        if not (root / pattern.removesuffix("/*")).exists():
            raise StError(what)
        return root


def read_json(path: Path) -> Mapping[str, Any]:
    """A file's settings. Raises StError naming the file."""
    try:
        return read_object(path)
    except (OSError, ValueError) as error:
        fix = "load it again from where it came from"
        raise StError(f"{str(path)!r} cannot be read: {error}", fix=fix) from error


def _hinted(entry: list[Any]) -> str:
    """The class that a modular index wants of a component that it does not name."""
    hint = entry[2].get("type_hint") if len(entry) > 2 and isinstance(entry[2], dict) else None
    return str(hint[1]) if hint else ""


def _copy_index(index: Path, directory: Path) -> None:
    """A modular index says where each component is; in the copy that is the copy."""
    entries = dict(read_json(index))
    for entry in entries.values():
        if isinstance(entry, list) and len(entry) > 2 and isinstance(entry[2], dict):
            entry[2]["pretrained_model_name_or_path"] = str(directory)
    if index.name == MODULAR_INDEX:
        (directory / index.name).write_text(json.dumps(entries, indent=2), encoding="utf-8")
    else:
        shutil.copyfile(index, directory / index.name)


def _link(source: str, target: str) -> None:
    try:
        os.link(Path(source).resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
