"""What the runs on flux and SDXL start from: pictures, checkpoints, and warm caches for ``st`` and for a bare loop."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from checkpoints import family_class, write_checkpoint
from family_settings import Files
from pictures import caption, write_photos
from processes import once

PICTURES = 16
Plain = tuple[str, str, int]
"""family, size and resolution of Files."""


def prepare(scratch: Path, wanted: Sequence[Plain], edge: int) -> list[Files]:
    """Write everything below a folder. edge: of the pictures, in pixels."""
    folder = scratch / "prepared"
    found = [Files(folder, *one) for one in dict.fromkeys(wanted)]
    photos = write_photos(found[0].photos, PICTURES, (edge, edge))
    found[0].listed.mkdir()
    lines = []
    for number, photo in enumerate(sorted(photos.glob("*.jpg"))):
        shutil.copy(photo, found[0].listed)
        lines.append(json.dumps({"file_name": photo.name, "text": caption(number)}))
    (found[0].listed / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    plain = [(one.family, one.size, one.resolution) for one in found]
    once(("family_files", "all", [str(folder), plain]), scratch / "log.txt")
    return found


def write_all(folder: str, wanted: Sequence[Plain]) -> bool:
    """Checkpoints, and the caches of one step of ``st`` on each."""
    from st.cli import run

    for files in (Files(Path(folder), *one) for one in wanted):
        if not files.checkpoint.exists():
            write_checkpoint(files.family, files.size, files.checkpoint)
        output = json.dumps(str(files.folder / f"{files.name}-first"))
        file = str(files.run_file("bf16"))
        assert run(["train", file, "--set", "steps=1", "--set", f"output={output}"]) == 0
        _write_cached(files)
    return True


def _write_cached(files: Files) -> None:
    """What the family's own networks make of the pictures and captions, in one file for the bare loop."""
    import numpy as np
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    from st import Input

    kind, device = family_class(files.family), torch.device("cpu")
    family = kind(kind.Options(checkpoint=str(files.checkpoint)))
    photos, size = sorted(files.photos.glob("*.jpg")), (files.resolution, files.resolution)
    pictures = [np.array(Image.open(photo).resize(size, Image.Resampling.LANCZOS)) for photo in photos]
    pixels = [torch.from_numpy(picture).permute(2, 0, 1).float() / 255 for picture in pictures]
    with family.codec().open(device) as encode:
        entries = [dict(one) for one in encode([Input("", pixels=one) for one in pixels])]
    for encoder in family.text_encoders():
        with encoder.open(device) as read:
            words = read([Input("", caption=photo.with_suffix(".txt").read_text(encoding="utf-8")) for photo in photos])
        for entry, more in zip(entries, words, strict=True):
            entry.update(more)
    names = ("latents", "prompt_embeds", "pooled_prompt_embeds")
    stacked = {name: torch.stack([entry[name] for entry in entries]).contiguous() for name in names}
    save_file(stacked, files.cached)


CASES: dict[str, Callable[..., bool]] = {"all": write_all}
