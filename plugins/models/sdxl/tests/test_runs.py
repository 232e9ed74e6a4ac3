"""Whole runs through the command line: with text encoders, in stages, with previews, stopped and continued."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from st.testing.runs import call_cli, write_photos

# A guard of diffusers warns where the text encoders are left out, as they are here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")

RUN = """
plugins = ["sdxl"]
batch = 2
precision = "{precision}"
device = "cpu"
[model]
checkpoint = "{checkpoint}"
{model}
[adapter]
rank = 2
[noise]
offset = 0.1
[weighting]
kind = "min_snr"
[recompute]
every = 1
[[dataset]]
url = "{photos}"
resolution = 64
align = 8
caption_dropout = 0.5
"""

PREVIEWS = """
[validation]
every = 2
prompts = ["a tree"]
resolutions = ["64"]
steps = 2
"""

Train = Callable[..., Path]


@pytest.fixture
def train(checkpoint: Path, tmp_path: Path) -> Train:
    """``train("out", steps=3)``: runs to the end; the folder."""

    def run(
        name: str, *, steps: int, model: str = "", text: str = "", precision: str = "fp32", resume: bool = False
    ) -> Path:
        places = {"checkpoint": checkpoint, "photos": write_photos(tmp_path / "photos")}
        file = tmp_path / "run.toml"
        file.write_text(RUN.format(**places, model=model, precision=precision) + text)
        folder = tmp_path / name
        further = ["--resume"] if resume else []
        result = call_cli("train", file, "--output", folder, "--set", f"steps={steps}", *further)
        assert result.code == 0, result.err
        return folder

    return run


def test_a_run_with_text_encoders_continues_bit_for_bit(train: Train) -> None:
    model = "train_text = true"

    whole = load_file(train("whole", steps=4, model=model) / "adapter.safetensors")
    train("parts", steps=2, model=model)
    parts = load_file(train("parts", steps=4, model=model, resume=True) / "adapter.safetensors")

    assert whole.keys() == parts.keys()
    assert all(whole[key].numpy().tobytes() == parts[key].numpy().tobytes() for key in whole)


@pytest.mark.parametrize("stage", ["first", "second"])
def test_a_stage_trains_and_shows_what_it_learned(train: Train, stage: str) -> None:
    flow = "true" if stage == "first" else "false"
    model = f'stage = "{stage}"\nprediction = "v"\nzero_terminal_snr = true\nflow = {flow}'

    folder = train("out", steps=2, model=model, text=PREVIEWS, precision="bf16")

    pictures = sorted(path.relative_to(folder / "samples").parts[0] for path in folder.rglob("samples/*/*.png"))
    assert pictures == ["base", "step-00000002"]
