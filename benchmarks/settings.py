"""The run files that are measured with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

TEXT = """
plugins = ["pocket"]
output = {output}
steps = 1000000
batch = {batch}
precision = {precision}
device = "cpu"

[density]
kind = "logit_normal"
scale = 1.0

[shift]
kind = "static"
value = {shift}

[weighting]
kind = "inverse_square"
floor = {floor}

[adapter]
{adapter}

[optimizer]
lr = 1e-4

[checkpoint]
every = {save_every}

[cache]
url = {cache}

[[dataset]]
url = {photos}
name = "photos"
resolution = {resolution}
align = 16
caption = {caption}
caption_dropout = 0.0

[model]
{model}
"""
RANK, TARGETS = 16, ["to_q", "to_k", "to_v", "to_out.0"]
SHIFT, FLOOR = 4.5, 0.05
"""Of low-rank training and of the objective: the same in a run file and in the bare loop."""

ADAPTERS = {"full": 'kind = "full"', "lora": f'kind = "lora"\nrank = {RANK}\ntargets = {json.dumps(TARGETS)}'}


def write_run_file(folder: Path, photos: Path, changes: Mapping[str, object]) -> Path:
    """A run file in ``folder``, whose runs write below it. Raises KeyError for a change that TEXT has no place for."""
    settings: dict[str, object] = {
        "output": str(folder / "run"),
        "cache": str(folder / "cache"),
        "photos": str(photos),
        "batch": 8,
        "precision": "fp32",
        "resolution": 64,
        "caption": "textfile",
        "save_every": 0,
    }
    adapter, model = ADAPTERS[str(changes.get("adapter", "full"))], changes.get("model")
    others = {name: value for name, value in changes.items() if name not in ("adapter", "model")}
    if unknown := others.keys() - settings.keys():
        raise KeyError(f"no place for {unknown}")
    quoted = {name: json.dumps(value) for name, value in (settings | others).items()}
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "run.toml"
    checkpoint = f"checkpoint = {json.dumps(str(model))}" if model else ""
    file.write_text(
        TEXT.format(**quoted, shift=SHIFT, floor=FLOOR, adapter=adapter, model=checkpoint), encoding="utf-8"
    )
    return file
