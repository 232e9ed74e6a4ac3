"""The demo: photographs out of two packages, a model that learns twelve subjects from nothing, an adapter for one more.

    python demo/run.py

Everything it writes is in ``build/demo``, which is emptied first. The last line says where the report is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
OUTPUT = Path("build/demo")
COMMANDS = (
    ("demo/photographs.py", str(OUTPUT / "photos")),
    ("-m", "st.cli", "train", "demo/base.toml"),
    ("-m", "st.cli", "train", "demo/lora.toml"),
)


def main() -> None:
    os.chdir(ROOT)
    shutil.rmtree(OUTPUT, ignore_errors=True)
    begun = time.monotonic()
    for command in COMMANDS:
        print("$ python", *command, flush=True)
        status = subprocess.run([sys.executable, *command]).returncode
        if status:
            raise SystemExit(status)
    print(f"\nfinished after {(time.monotonic() - begun) / 60:.1f} minutes; open {OUTPUT / 'lora' / 'report.html'}")


if __name__ == "__main__":
    main()
