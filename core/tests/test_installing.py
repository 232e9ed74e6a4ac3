"""A message that says how to install names a command that works where the reader is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from st.installing import clone_of, install_command


def install_from(folder: Path, site: Path) -> None:
    """A core that was installed from a folder, as its metadata says it."""
    metadata = site / "st_core-9.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: st-core\nVersion: 9.0\n")
    (metadata / "direct_url.json").write_text(json.dumps({"url": folder.as_uri(), "dir_info": {"editable": True}}))


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone with a blank in its path and one package, from which the core is installed."""
    clone = tmp_path / "my clone"
    for name, folder in (("st-core", "core"), ("st-quill", "plugins/models/quill")):
        (clone / folder).mkdir(parents=True)
        (clone / folder / "pyproject.toml").write_text(f'[project]\nname = "{name}"\n')
    install_from(clone / "core", tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")
    return clone


def on_path(pip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip.parent.mkdir(parents=True, exist_ok=True)
    pip.write_text("#!/bin/sh\n")
    pip.chmod(0o755)
    monkeypatch.setenv("PATH", str(pip.parent))


def test_a_package_of_the_clone_is_installed_from_its_folder(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_path(clone / "another" / "bin" / "pip", monkeypatch)
    folder = clone / "plugins" / "models" / "quill"

    assert install_command("st-quill") == f"{sys.executable} -m pip install -e '{folder}'"


def test_inside_the_clone_paths_are_short_and_pinned(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clone / "constraints.txt").touch()
    monkeypatch.chdir(clone)

    assert install_command("st-quill").endswith(" install -c constraints.txt -e plugins/models/quill")


def test_what_the_clone_lacks_comes_from_the_index(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_path(clone / "another" / "bin" / "pip", monkeypatch)
    assert install_command("st-elsewhere", "-U") == f"{sys.executable} -m pip install -U st-elsewhere"


def test_pip_goes_by_its_name_only_where_that_is_this_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path(tmp_path / "other" / "pip", monkeypatch)
    python = str(tmp_path / "own" / "python")
    monkeypatch.setattr(sys, "executable", python)
    of_another = install_command("st-elsewhere")
    on_path(tmp_path / "own" / "pip", monkeypatch)

    assert of_another == f"{python} -m pip install st-elsewhere"
    assert install_command("st-elsewhere") == "pip install st-elsewhere"


def test_a_core_from_an_index_has_no_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_from(tmp_path / "wheelhouse" / "core", tmp_path / "site")
    monkeypatch.syspath_prepend(tmp_path / "site")

    assert clone_of("st-core") is None
