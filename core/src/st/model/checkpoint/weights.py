"""Weights: one network that lies by itself, in a folder, in a repository on the hub or in a single file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from st.errors import StError
from st.model.checkpoint.hub import download, is_repository

FILES = ("*.json", "*.safetensors")


@dataclass(frozen=True, slots=True)
class Weights:
    """Where a network's weights are.

    location: a folder, a repository ``owner/name``, a ``.safetensors`` file, or one inside of a repository,
    ``owner/name/file.safetensors``. subfolder: of the folder or the repository; '' for its top. setting: the option
    that named it (``model.denoiser``), for messages. Only safetensors are read. Raises StError naming what is missing.
    """

    location: str
    subfolder: str = ""
    revision: str = ""
    variant: str = ""
    setting: str = "model.denoiser"

    @property
    def is_file(self) -> bool:
        """Whether this is a single file, which is told by its name."""
        return self.location.endswith(".safetensors")

    def is_here(self) -> bool:
        """Whether it is on this machine. Raises StError where it is neither there nor of a repository's name."""
        local = Path(self.location).expanduser()
        if local.is_file() or local.is_dir():
            return True
        if not is_repository("/".join(self.location.split("/")[:2])):
            self.file() if self.is_file else self.folder()
        return False

    def file(self) -> Path:
        """The single file, on this machine."""
        local = Path(self.location).expanduser()
        if local.is_file():
            return local
        repository, inside = "/".join(self.location.split("/")[:2]), "/".join(self.location.split("/")[2:])
        if not inside or not is_repository(repository):
            raise StError(f"{self._here}: there is no such file")
        file = download(repository, self.revision, [inside], [], self.setting) / inside
        if not file.is_file():
            raise StError(f"{self._here}: {repository!r} has no {inside!r}")
        return file

    def folder(self) -> Path:
        """The folder with config.json and weights, on this machine."""
        local = Path(self.location).expanduser()
        if local.suffix in (".bin", ".pt", ".pth", ".ckpt", ".gguf"):
            raise StError(f"{self._here} cannot be read", fix="name a .safetensors file, or a folder with config.json")
        if not local.is_dir() and not is_repository(self.location):
            raise StError(
                f"{self._here}: there is no such folder",
                fix="name a folder with config.json, a repository on the hub as owner/name, or a .safetensors file",
            )
        root = local if local.is_dir() else self._download()
        folder = root / self.subfolder
        if not (folder / "config.json").is_file():
            elsewhere = sorted(str(path.parent.relative_to(root)) for path in root.glob("*/config.json"))
            raise StError(
                f"{self._here} has no {str(Path(self.subfolder) / 'config.json')!r}",
                why=f"there is one in {', '.join(elsewhere)}" if elsewhere else "",
                fix=f"set {self.setting}_subfolder to the folder that holds it, '' for the top",
            )
        return folder

    def _download(self) -> Path:
        wanted: Sequence[str] = [str(Path(self.subfolder) / pattern) for pattern in FILES]
        unwanted = [] if self.variant else ["*.fp16.*", "*.bf16.*", "*.non_ema.*"]
        return download(self.location, self.revision, wanted, unwanted, self.setting)

    @property
    def _here(self) -> str:
        return f"{self.setting} = {self.location!r}"
