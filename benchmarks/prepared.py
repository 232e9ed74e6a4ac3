"""What the training benchmarks start from: pictures, a denoiser on disk, and warm caches for both programs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pictures import write_photos
from processes import Case, once
from settings import write_run_file

PICTURES = 48
EDGE = 64


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything below one folder. size: of the denoiser that is measured; one that is tiny is there as well."""

    folder: Path
    size: str

    @property
    def photos(self) -> Path:
        return self.folder / "photos"

    @property
    def cached(self) -> Path:
        """Latents and embeddings of every picture, as one file for a bare loop."""
        return self.folder / "cached.safetensors"

    def checkpoint(self, size: str) -> Path:
        """A denoiser of the pocket family on disk."""
        return self.folder / size

    def run_file(self, name: str, *, size: str = "", **changes: object) -> Path:
        """A run file with a cache that is warm. Each name has an output folder of its own."""
        fixed = {"model": str(self.checkpoint(size or self.size)), "cache": str(self.folder / "cache")}
        return write_run_file(self.folder / name, self.photos, fixed | changes)

    def raw_case(
        self, case: str, *others: object, adapter: str = "full", precision: str = "fp32", size: str = ""
    ) -> Case:
        """A case of the hand-written loop on the same pictures and the same denoiser."""
        return ("loop", case, [str(self.cached), str(self.checkpoint(size or self.size)), adapter, precision, *others])


def prepare(scratch: Path, quick: bool) -> Prepared:
    """Write pictures and a denoiser with random weights, and fill both caches."""
    made, log = Prepared(scratch / "prepared", "tiny" if quick else "small"), scratch / "log.txt"
    write_photos(made.photos, PICTURES, (3 * EDGE, 3 * EDGE))
    inputs = [
        str(made.folder),
        sorted({made.size, "tiny"}),
        str(made.run_file("first")),
        str(made.photos),
        str(made.cached),
    ]
    once(("prepared", "all", inputs), log)
    return made


def write_all(folder: str, sizes: list[str], run_file: str, photos: str, cached: str) -> bool:
    """Denoisers first, since the first run trains one of them."""
    write_weights(folder, sizes)
    fill_caches(run_file, photos, cached)
    return True


def write_weights(folder: str, sizes: list[str]) -> None:
    """Denoisers of the pocket family, each below the folder under the name of its size."""
    import torch

    from st_pocket.family import Pocket, PocketOptions

    for size in sizes:
        family = Pocket(PocketOptions.model_validate({"size": size}))
        denoiser = family.load_denoiser(torch.device("cpu"), torch.float32)
        draws = torch.Generator().manual_seed(0)
        for weight in denoiser.parameters():
            # The family begins with zeros, and products with zeros may be quicker than training is.
            weight.data += 0.02 * torch.randn(weight.shape, generator=draws)
        family.save_checkpoint(denoiser, Path(folder) / size)


def fill_caches(run_file: str, photos: str, cached: str) -> None:
    """One step of ``st``, which fills its cache; and the same latents and embeddings in one file for the bare loop."""
    import numpy as np
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    from st import Input
    from st.cli import run
    from st_pocket.family import Pocket, PocketOptions

    assert run(["train", run_file, "--set", "steps=1"]) == 0
    family, device = Pocket(PocketOptions()), torch.device("cpu")
    (encoder,) = family.text_encoders()
    files = sorted(Path(photos).glob("*.jpg"))
    pictures = [np.array(Image.open(file).resize((EDGE, EDGE), Image.Resampling.LANCZOS)) for file in files]
    pixels = [torch.from_numpy(picture).permute(2, 0, 1).float() / 255 for picture in pictures]
    texts = [file.with_suffix(".txt").read_text(encoding="utf-8") for file in files]
    with family.codec().open(device) as encode, encoder.open(device) as read:
        latents = encode([Input("", pixels=one) for one in pixels])
        words = read([Input("", caption=text) for text in texts])
    rows = [{**one, **other} for one, other in zip(latents, words, strict=True)]
    save_file({name: torch.stack([row[name] for row in rows]).contiguous() for name in rows[0]}, cached)


CASES: dict[str, Callable[..., bool]] = {"all": write_all}
