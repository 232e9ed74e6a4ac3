"""Fixtures of the core's own tests: packages that are really installed, in a folder of the test."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

FAMILY = '''
"""A family that loads nothing."""

import st
from st.data.geometry import Geometry


class Quill(st.ModelFamily["Quill.Options"]):
    """A family for tests of everything that happens before training."""

    class Options(st.Options):
        checkpoint: str = "quill-tiny"
        """Which weights."""
        scale: float = 1.0
        """How large."""

    def codec(self): ...
    def text_encoders(self): ...
    def load_denoiser(self, device, dtype): ...
    def tokens(self, latents): ...
    def predict(self, denoiser, noised, batch): ...
    def adapter_targets(self):
        return ("to_q",)

    def adapter_formats(self):
        return {"plain": st.comfyui_format()}
'''

Package = Callable[..., Path]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Package]:
    """Install a distribution: ``package("st-old", "0.2", {"st.v0.hooks": {"old": "st_old:Old"}}, st_old="source")``.

    Returns the folder that it is installed in, which is on ``sys.path`` for the length of the test.
    """
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)

    def install(name: str, version: str, entries: dict[str, dict[str, str]], **modules: str) -> Path:
        metadata = site / f"{name.replace('-', '_')}-{version}.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = [
            line
            for group, targets in entries.items()
            for line in (f"[{group}]", *(f"{entry} = {target}" for entry, target in targets.items()), "")
        ]
        (metadata / "entry_points.txt").write_text("\n".join(lines))
        for module, source in modules.items():
            (site / f"{module}.py").write_text(dedent(source))
        return site

    yield install
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def quill(package: Package) -> Path:
    """The family ``quill``, installed; the folder that it is in."""
    return package("st-quill", "1.2", {"st.v1.models": {"quill": "st_quill:Quill"}}, st_quill=FAMILY)


@pytest.fixture
def run_toml(tmp_path: Path) -> Callable[[str], Path]:
    """Write a run file ``run.toml``; its path."""

    def write(text: str) -> Path:
        path = tmp_path / "run.toml"
        path.write_text(dedent(text).lstrip("\n"))
        return path

    return write
