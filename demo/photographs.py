"""Write the demo's photographs with captions: real pictures that ship inside the scikit-image and scikit-learn wheels.

    python demo/photographs.py build/demo/photos

makes ``base/`` (twelve subjects), ``cat/`` (the subject that is kept for the LoRA) and ``held-out/`` (framings of the
twelve that no training sees). Every subject is framed wide, square and tall, twice each. Nothing is downloaded.
"""

from __future__ import annotations

import csv
import sys
from collections import Counter
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

SUBJECTS = Path(__file__).with_suffix(".csv")
"""Where each subject is in its photograph: for each shape "x y height", a box around (x, y), in pixels."""

ASPECTS = {"wide": 5 / 3, "square": 1.0, "tall": 3 / 5}
"""Width / height of each shape: the buckets 80x48, 64x64 and 48x80 at a resolution of 64."""

VIEWS = {"": (1.0, "a photo of {}"), "-close": (0.84, "a close photo of {}")}
"""Ending of the file's name -> how much of the box is shown, and the caption."""

HELD_OUT = {"": (0.92, "a photo of {}")}

SHORT_SIDE = 192
"""Pixels of a written picture's short side at most; the loader shrinks it further."""


def photograph(path: str) -> Image.Image:
    """The whole photograph at ``package/path/in/it``, RGB. Raises SystemExit where the package is not installed."""
    package, _, inside = path.partition("/")
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(
            f"{inside!r} ships in {package!r}, which is not installed: pip install scikit-image scikit-learn"
        )
    return Image.open(Path(spec.origin).parent / inside).convert("RGB")


def framed(picture: Image.Image, box: str, aspect: float, zoom: float) -> Image.Image:
    """What a box shows, its short side at most SHORT_SIDE. Where the box reaches outside, it is moved inside."""
    x, y, asked = map(int, box.split())
    height = min(zoom * asked, picture.height, picture.width / aspect)
    width = height * aspect
    left = min(max(x - width / 2, 0), picture.width - width)
    top = min(max(y - height / 2, 0), picture.height - height)
    shrink = min(1.0, SHORT_SIDE / min(width, height))
    size = (round(width * shrink), round(height * shrink))
    return picture.resize(size, Image.Resampling.LANCZOS, box=(left, top, left + width, top + height))


def write(subject: Mapping[str, str], folder: Path, views: Mapping[str, tuple[float, str]]) -> int:
    """Every shape of a subject in every view, as PNG beside its caption; how many pictures were written."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = photograph(subject["photograph"])
    for shape, aspect in ASPECTS.items():
        for ending, (zoom, caption) in views.items():
            path = folder / f"{subject['subject']}-{shape}{ending}.png"
            framed(picture, subject[shape], aspect, zoom).save(path)
            path.with_suffix(".txt").write_text(caption.format(subject["caption"]) + "\n", encoding="utf-8")
    return len(ASPECTS) * len(views)


def main(arguments: list[str]) -> None:
    if len(arguments) != 1:
        raise SystemExit("usage: python demo/photographs.py FOLDER")
    root, written = Path(arguments[0]), Counter[str]()
    with SUBJECTS.open(encoding="utf-8", newline="") as file:
        for subject in csv.DictReader(file):
            folder = subject["folder"]
            written[folder] += write(subject, root / folder, VIEWS)
            if folder == "base":
                written["held-out"] += write(subject, root / "held-out", HELD_OUT)
    print(f"{root}: photographs of " + ", ".join(f"{folder} ({count})" for folder, count in written.items()))


if __name__ == "__main__":
    main(sys.argv[1:])
