"""Train with the run file of a plugin's README: ``python tests/take_part.py README.md [--set KEY=VALUE ...]``.

The first ```toml block is written to a new folder beside the pictures, clips or songs that it names; where they are in
a bucket or on a hub, there is one on this machine. A family with published weights gets a tiny checkpoint. Of the
steps, four are taken; further settings are those of ``take_part.toml`` for the README's folder. ``st train`` must end
with 0 there and write something.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from readme_data import write_data, write_vision

from st.plugins.catalogue import Catalogue

SMALL = Path(__file__).with_suffix(".toml")
STEPS = 4


def main() -> int:
    """The exit status of the run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readme", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    readme = arguments.readme.resolve()
    block = re.search(r"^```toml[^\n]*\n(.*?)^```", readme.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    if block is None:
        print(f"{readme}: has no run file", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as name, ExitStack() as servers:
        folder = Path(name)
        settings = tomllib.loads(block[1])
        (folder / "run.toml").write_text(block[1], encoding="utf-8")
        changes = [*_models(settings, folder), f"steps={min(STEPS, settings.get('steps', STEPS))}"]
        changes += [*tomllib.loads(SMALL.read_text(encoding="utf-8")).get(readme.parent.name, ()), *arguments.set]
        # Caches of media, of hubs and of trackers lie in the user's folder.
        environment = {**os.environ, "HOME": name}
        for dataset in settings.get("dataset", ()):
            environment |= write_data(dataset, folder, servers)
        command = [sys.executable, "-m", "st.cli", "train", "run.toml"]
        command += [word for change in changes for word in ("--set", change)]
        print("$", *command[1:], flush=True)
        status = subprocess.run(command, cwd=folder, env=environment).returncode
        written = sorted(str(file.relative_to(folder)) for file in (folder / settings["output"]).glob("*"))
    print(*written, sep="\n")
    return status or int(not written)


def _models(settings: dict[str, Any], folder: Path) -> list[str]:
    """Tiny checkpoints in place of published weights, where the run file is for some."""
    changes = []
    families = [name for name in settings["plugins"] if name in Catalogue.scan().names("models")]
    if families and {"flavour", "checkpoint"} & settings.get("model", {}).keys():
        subprocess.run([sys.executable, "-m", "st.cli", "tiny", families[0], str(folder / "tiny")], check=True)
        changes.append("model.checkpoint=tiny")
    if "crepa" in settings:
        changes.append(f"crepa.model={write_vision(folder / 'vision')}")
    return changes


if __name__ == "__main__":
    raise SystemExit(main())
