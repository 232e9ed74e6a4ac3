"""Write the demo's photographs with captions: real pictures that ship inside the scikit-image and scikit-learn wheels.

    python demo/photographs.py build/demo/photos

makes ``base/`` (twelve subjects), ``cat/`` (the subject that is kept for the LoRA) and ``held-out/`` (framings of the base's
subjects that no training sees). Every subject is framed wide, square and tall, twice each. Nothing is downloaded.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

ASPECTS = {"wide": 5 / 3, "square": 1.0, "tall": 3 / 5}
"""Width / height of each framing: the buckets 80x48, 64x64 and 48x80 at a resolution of 64."""

SHORT_SIDE = 192
"""Pixels of a written picture's short side; the loader shrinks it further."""


@dataclass(frozen=True, slots=True)
class Framing:
    """A box around (x, y) of the photograph, ``height`` pixels high. What would lie outside is moved inside."""

    x: int
    y: int
    height: int


@dataclass(frozen=True, slots=True)
class Subject:
    """One photograph: which package's file it is, what its captions say, where its subject is."""

    name: str
    package: str
    file: str
    caption: str
    wide: Framing
    square: Framing
    tall: Framing


SKIMAGE, SKLEARN = "skimage/data", "sklearn/datasets/images"

BASE = (
    Subject("astronaut", SKIMAGE, "astronaut.png", "an astronaut in an orange suit", Framing(250, 160, 300),
            Framing(235, 175, 350), Framing(225, 205, 410)),
    Subject("photographer", SKIMAGE, "camera.png", "a photographer with a camera on a tripod", Framing(256, 160, 300),
            Framing(260, 190, 370), Framing(250, 250, 490)),
    Subject("coffee", SKIMAGE, "coffee.png", "a cup of coffee on a red saucer", Framing(300, 190, 358),
            Framing(285, 190, 370), Framing(285, 200, 400)),
    Subject("coins", SKIMAGE, "coins.png", "old coins on black cloth", Framing(192, 120, 225),
            Framing(150, 150, 290), Framing(290, 150, 300)),
    Subject("motorcycle", SKIMAGE, "motorcycle_left.png", "a red motorcycle in a garage", Framing(370, 250, 440),
            Framing(390, 270, 440), Framing(470, 250, 480)),
    Subject("moon", SKIMAGE, "moon.png", "craters on the grey moon", Framing(256, 150, 300),
            Framing(256, 230, 450), Framing(180, 250, 500)),
    Subject("retina", SKIMAGE, "retina.jpg", "the retina of an eye", Framing(705, 705, 846),
            Framing(705, 705, 1400), Framing(600, 705, 1400)),
    Subject("rocket", SKIMAGE, "rocket.jpg", "a white rocket on its launch pad at dusk", Framing(320, 240, 380),
            Framing(335, 230, 390), Framing(340, 220, 410)),
    Subject("pagoda", SKLEARN, "china.jpg", "a pagoda above a lake", Framing(300, 215, 380),
            Framing(245, 215, 400), Framing(230, 215, 425)),
    Subject("flower", SKLEARN, "flower.jpg", "an orange dahlia flower", Framing(300, 190, 380),
            Framing(275, 190, 370), Framing(275, 215, 425)),
    Subject("bricks", SKIMAGE, "brick.png", "a wall of bricks", Framing(256, 150, 300),
            Framing(256, 256, 460), Framing(256, 256, 500)),
    Subject("galaxies", SKIMAGE, "hubble_deep_field.jpg", "galaxies in deep space", Framing(500, 436, 590),
            Framing(500, 436, 850), Framing(500, 436, 860)),
)
CAT = Subject("cat", SKIMAGE, "chelsea.png", "chelsea the cat", Framing(225, 150, 268),
              Framing(225, 135, 270), Framing(240, 150, 300))

TRAINED = {"": (1.0, "a photo of {}"), "-close": (0.84, "a close photo of {}")}
"""Name's ending -> how much of the framing is shown, and the caption."""

HELD_OUT = {"": (0.92, "a photo of {}")}


def photograph(subject: Subject) -> Image.Image:
    """The whole photograph, RGB. Raises SystemExit where its package is not installed."""
    package, _, folder = subject.package.partition("/")
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"the photograph {subject.file!r} ships in {package!r}: pip install scikit-image scikit-learn")
    return Image.open(Path(spec.origin).parent / folder / subject.file).convert("RGB")


def framed(picture: Image.Image, framing: Framing, aspect: float, zoom: float) -> Image.Image:
    """The part of a photograph that a framing shows, its short side at most SHORT_SIDE."""
    height = min(zoom * framing.height, picture.height, picture.width / aspect)
    width = height * aspect
    left = min(max(framing.x - width / 2, 0), picture.width - width)
    top = min(max(framing.y - height / 2, 0), picture.height - height)
    shrink = min(1.0, SHORT_SIDE / min(width, height))
    size = (round(width * shrink), round(height * shrink))
    return picture.resize(size, Image.Resampling.LANCZOS, box=(left, top, left + width, top + height))


def write(subject: Subject, folder: Path, views: dict[str, tuple[float, str]]) -> int:
    """Every framing of a subject in every view, as PNG beside its caption; how many pictures were written."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = photograph(subject)
    for shape, aspect in ASPECTS.items():
        framing: Framing = getattr(subject, shape)
        for ending, (zoom, caption) in views.items():
            path = folder / f"{subject.name}-{shape}{ending}.png"
            framed(picture, framing, aspect, zoom).save(path)
            path.with_suffix(".txt").write_text(caption.format(subject.caption) + "\n", encoding="utf-8")
    return len(ASPECTS) * len(views)


def main(arguments: list[str]) -> None:
    if len(arguments) != 1:
        raise SystemExit("usage: python demo/photographs.py FOLDER")
    root = Path(arguments[0])
    base = sum(write(subject, root / "base", TRAINED) for subject in BASE)
    held_out = sum(write(subject, root / "held-out", HELD_OUT) for subject in BASE)
    cat = write(CAT, root / "cat", TRAINED)
    print(f"{root}: {base} photographs of {len(BASE)} subjects, {held_out} held out, {cat} of a cat for the LoRA")


if __name__ == "__main__":
    main(sys.argv[1:])
