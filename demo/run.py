"""The demo: photographs out of two packages, a model trained on twelve subjects, an adapter on the thirteenth.

    python demo/run.py [FOLDER]

writes everything below FOLDER (``build/demo`` where none is named) and says where the report is.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent


def main(arguments: list[str]) -> None:
    folder = Path(arguments[0]) if arguments else Path("build/demo")
    begun = time.monotonic()
    run(sys.executable, HERE / "photographs.py", folder / "photos")
    train("base.toml", folder / "base", f'dataset.0.url={folder / "photos" / "base"}')
    train("lora.toml", folder / "lora", f'model.checkpoint={folder / "base" / "model"}')
    print(f"\nthe demo took {(time.monotonic() - begun) / 60:.1f} minutes; open {folder / 'lora' / 'report.html'}")
