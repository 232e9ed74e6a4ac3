"""Tiny checkpoints of the two families, pictures with control pictures, and runs on them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from st.testing.runs import TinyRun
from st_flux import Flux
from st_sdxl import Sdxl

RUN = """
plugins = [{plugins}]
output = "{output}"
steps = {steps}
batch = 4
precision = "fp32"
device = "cpu"
[model]
checkpoint = "{checkpoint}"
{model}
[adapter]
kind = "{kind}"
{adapter}
[optimizer]
kind = "adamw"
lr = {lr}
[evaluation]
every = {steps}
[[dataset]]
name = "wanted"
url = "{folder}/wanted"
resolution = 64
align = 16
instance_prompt = "x"
reference_sets = ["shown"]
[[dataset]]
name = "unseen"
role = "evaluation"
url = "{folder}/unseen"
resolution = 64
align = 16
instance_prompt = "x"
reference_sets = ["shown"]
[[dataset]]
name = "shown"
role = "reference"
url = "{folder}/{shown}"
{more}
"""


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each family, with latents as large as noise: those of a random autoencoder are a tenth of it."""
    root = tmp_path_factory.mktemp("checkpoints")
    for name, family in (("flux", Flux), ("sdxl", Sdxl)):
        family.tiny(root / name)
        file = root / name / "vae" / "config.json"
        settings = json.loads(file.read_text(encoding="utf-8"))
        settings["scaling_factor"] *= 12
        file.write_text(json.dumps(settings), encoding="utf-8")
    return {name: root / name for name in ("flux", "sdxl")}


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of one colour each; ``shown`` has that colour for each of them, ``grey`` the same grey for all."""
    folder, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(3)
    for name, count in (("wanted", 24), ("unseen", 8)):
        for number in range(count):
            colour = draw.integers(0, 256, 3, dtype=np.uint8)
            for where, value in ((name, colour), ("shown", colour), ("grey", np.full(3, 128, np.uint8))):
                (folder / where).mkdir(exist_ok=True)
                pixels = np.broadcast_to(value, (64, 64, 3)).copy()
                Image.fromarray(pixels).save(folder / where / f"{name}-{number}.png")
    return folder


@pytest.fixture
def train(
    run_file: Any, st_cli: Any, checkpoints: dict[str, Path], pictures: Path, tmp_path: Path
) -> Callable[..., TinyRun]:
    """Trains a family with control pictures; ``resume`` goes on with the run of the same name."""

    def run(family: str, kind: str = "controlnet", name: str = "out", resume: bool = False, **given: Any) -> TinyRun:
        output = tmp_path / name
        known = {"steps": 3, "lr": 0.003, "model": "", "adapter": "", "shown": "shown", "more": ""} | given
        model = "max_tokens = 8\n" if family == "flux" else ""
        model += f'text_precision = "fp32"\n{known.pop("model")}'
        names = [family, "controlnet", *(["tread"] if "[tread]" in known["more"] else [])]
        text = RUN.format(
            plugins=", ".join(f'"{one}"' for one in names),
            kind=kind,
            output=output,
            checkpoint=checkpoints[family],
            folder=pictures,
            model=model,
            **known,
        )
        return TinyRun(output, st_cli("train", run_file(text), *(["--resume"] if resume else [])))

    return run


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    """Nothing that a test draws moves another."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def without_last() -> Callable[[TinyRun], None]:
    """Takes a run's last checkpoint away, as if it had been stopped before it was written."""

    def remove(run: TinyRun) -> None:
        folders = sorted((run.directory / "checkpoints").glob("step-*"))
        assert len(folders) > 1
        shutil.rmtree(folders[-1])

    return remove
