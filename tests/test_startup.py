"""Commands that do not train import nothing heavy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from st.plugins.checking import HEAVY
from st.testing.runs import TINY, write_photos

RUN_FILE = f"""
plugins = ["{TINY}:TinyFamily"]
output = "out"
steps = 2
[optimizer]
kind = "adamw"
[average]
decay = 0.9
[[dataset]]
url = "photos"
resolution = 64
align = 8
"""

LISTING = ("numpy", "pyarrow", "PIL")
"""What a dry run lists data sets with."""

PROGRAM = """
import sys
from st.cli import run
code = run(sys.argv[1:])
print(*(name for name in {heavy!r} if name in sys.modules), file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["train", "--help"],
        ["plugins"],
        ["ctl", "--help"],
        ["train", "run.toml", "--dry-run"],
        ["train", "run.toml", "--dry-run", "--set", "optimizer.lr=1e-3"],
        ["config", "show", "run.toml"],
        ["new", "hook", "my-hook"],
    ],
    ids=" ".join,
)
def test_nothing_heavy_is_imported(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(RUN_FILE)
    write_photos(tmp_path / "photos")
    heavy = [name for name in HEAVY if "--dry-run" not in arguments or name not in LISTING]
    command = [sys.executable, "-c", PROGRAM.format(heavy=heavy), *arguments]

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert done.stderr.split() == []


def test_import_st_imports_nothing_but_the_standard_library(tmp_path: Path) -> None:
    code = "import sys; before = set(sys.modules); import st; print(*sorted(set(sys.modules) - before))"

    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)

    allowed = sys.stdlib_module_names | {"st"}
    assert [name for name in done.stdout.split() if name.partition(".")[0] not in allowed] == []


def test_a_broken_plugin_that_nobody_named_breaks_nothing(tmp_path: Path) -> None:
    metadata = tmp_path / "st_broken-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: st-broken\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[st.v1.hooks]\nbroken = st_broken:Broken\n")
    (tmp_path / "st_broken.py").write_text("raise RuntimeError('imported')\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "st.cli", "plugins"]

    done = subprocess.run(command, env=environment, capture_output=True, text=True)

    assert done.returncode == 0
    assert "broken" in done.stdout
