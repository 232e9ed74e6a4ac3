"""What runs on flux and SDXL are measured with: the same for ``st``, for the bare loop and for diffusers' scripts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

RANK = 4
ATTENTION = ("to_k", "to_q", "to_v", "to_out.0")
STREAMS = ("add_k_proj", "add_q_proj", "add_v_proj", "to_add_out")
LAYERS = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")
TARGETS: Mapping[str, tuple[str, ...]] = {
    "flux": (*(f"attn.{name}" for name in (*ATTENTION, *STREAMS)), *LAYERS),
    "sdxl": ATTENTION,
}
"""What diffusers' scripts train where they are told nothing else."""

TEXT = """
plugins = {plugins}
output = {output}
steps = 1000000
batch = 1
precision = {precision}
device = "cpu"

[model]
checkpoint = {checkpoint}
autoencoder_precision = {autoencoder}

[adapter]
kind = "lora"
rank = {rank}
targets = {targets}

[optimizer]
lr = 1e-4

[checkpoint]
every = 0

[cache]
url = {cache}

[[dataset]]
url = {photos}
name = "photos"
resolution = {resolution}
align = 16
caption = "textfile"
caption_dropout = 0.0
"""
TREAD = """
[tread]
drop = 0.5
first = 2
last = -2
"""


@dataclass(frozen=True, slots=True)
class Files:
    """Everything below one folder. size: of a checkpoint. resolution: of the pictures that are trained on."""

    folder: Path
    family: str
    size: str
    resolution: int

    @property
    def name(self) -> str:
        return f"{self.family}-{self.size}-{self.resolution}"

    @property
    def checkpoint(self) -> Path:
        return self.folder / f"{self.family}-{self.size}"

    @property
    def photos(self) -> Path:
        """Pictures beside captions in text files."""
        return self.folder / "photos"

    @property
    def listed(self) -> Path:
        """The same pictures beside one file of captions, as the library of data sets reads them."""
        return self.folder / "listed"

    @property
    def cached(self) -> Path:
        """Latents and embeddings of every picture, as one file for a bare loop."""
        return self.folder / f"{self.name}.safetensors"

    @property
    def many(self) -> Path:
        """More pictures, for filling caches."""
        return self.folder / "many"

    def run_file(self, precision: str, tread: bool = False, photos: Path | None = None) -> Path:
        """A run file with a cache of its own for each size and resolution, and an output folder of its own."""
        folder = self.folder / f"{self.name}-{precision}{'-tread' if tread else ''}{'-many' if photos else ''}"
        folder.mkdir(parents=True, exist_ok=True)
        settings = {
            "plugins": [self.family, "tread"] if tread else [self.family],
            "output": str(folder / "run"),
            "precision": precision,
            "checkpoint": str(self.checkpoint),
            "rank": RANK,
            "targets": list(TARGETS[self.family]),
            "cache": str(self.folder / f"{self.name}-cache"),
            "photos": str(photos or self.photos),
            "autoencoder": "bf16" if self.family == "flux" and precision == "bf16" else "fp32",
            "resolution": self.resolution,
        }
        text = TEXT.format(**{name: json.dumps(value) for name, value in settings.items()})
        file = folder / "run.toml"
        file.write_text(text + (TREAD if tread else ""), encoding="utf-8")
        return file
