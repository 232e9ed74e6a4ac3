"""Train with the run file of a plugin's README: ``python tests/take_part.py README.md``.

The first ```toml block is written to a new folder beside a few pictures; ``st train`` must end with 0 there.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from st.testing.runs import write_photos


def main(readme: Path) -> int:
    """The exit status of the run."""
    block = re.search(r"^```toml\n(.*?)^```", readme.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    if block is None:
        print(f"{readme}: has no run file", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = write_photos(folder / "photos")
        with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
            for file in sorted(photos.iterdir()):
                archive.write(file, file.name)
        (folder / "run.toml").write_text(block[1], encoding="utf-8")
        status = subprocess.run([sys.executable, "-m", "st.cli", "train", "run.toml"], cwd=folder).returncode
        written = sorted(str(file.relative_to(folder)) for file in folder.glob("runs/first/*"))
    print(*written, sep="\n")
    return status


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
