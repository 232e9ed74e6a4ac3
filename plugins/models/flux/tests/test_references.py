"""Kontext on data with reference pictures: it learns from what it is shown, and says where something is missing."""

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

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")
RUN = """
plugins = ["flux"]
output = "{output}"
steps = {steps}
batch = 4
precision = "fp32"
device = "cpu"
[model]
flavour = "{flavour}"
checkpoint = "{checkpoint}"
max_tokens = 8
text_precision = "fp32"
[adapter]
kind = "full"
[optimizer]
kind = "adamw"
lr = 0.003
[evaluation]
every = {steps}
[[dataset]]
name = "wanted"
url = "{folder}/wanted"
resolution = 32
align = 16
instance_prompt = "x"
{references}
[[dataset]]
name = "unseen"
role = "evaluation"
url = "{folder}/unseen"
resolution = 32
align = 16
instance_prompt = "x"
{references}
{more}
"""
SETS = """
[[dataset]]
name = "shown"
role = "reference"
url = "{folder}/shown"
"""
NAMED = 'reference_sets = ["shown"]'


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of one colour each, and as reference of each the same colour."""
    folder, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(3)
    for name, count in (("wanted", 24), ("unseen", 8)):
        for number in range(count):
            colour = Image.fromarray(np.broadcast_to(draw.integers(0, 256, 3, dtype=np.uint8), (32, 32, 3)).copy())
            for where in (folder / name, folder / "shown"):
                where.mkdir(exist_ok=True)
                colour.save(where / f"{name}-{number}.png")
    return folder


@pytest.fixture(scope="module")
def vivid(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint, wide enough to carry noise, and with latents as large as it instead of a tenth of that."""
    from diffusers import FluxTransformer2DModel

    copy = tmp_path_factory.mktemp("vivid") / "checkpoint"
    shutil.copytree(folder, copy)
    file = copy / "vae" / "config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["scaling_factor"] *= 12
    file.write_text(json.dumps(settings), encoding="utf-8")
    torch.manual_seed(0)
    config = FluxTransformer2DModel.load_config(copy / "transformer")
    wide = {"attention_head_dim": 32, "num_attention_heads": 4, "axes_dims_rope": (8, 12, 12)}
    FluxTransformer2DModel.from_config(config, **wide).save_pretrained(copy / "transformer")
    return copy


@pytest.fixture
def train(run_file: Any, st_cli: Any, vivid: Path, pictures: Path, tmp_path: Path) -> Callable[..., TinyRun]:
    def run(flavour: str, steps: int, references: str = NAMED, more: str = SETS) -> TinyRun:
        output = tmp_path / flavour
        text = RUN.format(
            output=output,
            steps=steps,
            flavour=flavour,
            checkpoint=vivid,
            folder=pictures,
            references=references,
            more=more.format(folder=pictures),
        )
        return TinyRun(output, st_cli("train", run_file(text)))

    return run


def at_most_noise(run: TinyRun) -> float:
    """The loss of unseen pictures where x tells least: in the quarter of times with most noise."""
    assert run.result.code == 0, run.result.err
    return run.metrics()["eval/unseen/q4"][-1]


@pytest.mark.alone
def test_a_model_that_is_shown_references_learns_what_no_caption_says(train: Callable[..., TinyRun]) -> None:
    shown, not_shown = train("kontext", 300), train("krea", 300, references="", more="")

    assert at_most_noise(shown) < 0.7 * at_most_noise(not_shown)


def test_previews_are_shown_their_prompt_s_references_and_a_resumed_run_is_the_same(
    train: Callable[..., TinyRun], pictures: Path, tmp_path: Path, st_cli: Any
) -> None:
    prompt = f'{{prompt = "x", name = "edit", references = ["{pictures}/shown/wanted-NUMBER.png"]}}'
    preview = (
        '[validation]\nevery = 4\nresolutions = ["32"]\nsteps = 2\nguidance = 1.0\nat_start = false\n'
        f"prompts = [{prompt.replace('NUMBER', '0')}, {prompt.replace('NUMBER', '1').replace('edit', 'other')}]\n"
        "[checkpoint]\nevery = 2\n"
    )

    whole = train("kontext", 4, more=preview.replace("{", "{{").replace("}", "}}") + SETS)
    kept = (whole.directory / "model" / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
    edit, other = (
        (whole.directory / "samples" / "step-00000004" / f"{name}-32x32.png").read_bytes() for name in ("edit", "other")
    )
    shutil.rmtree(whole.directory / "checkpoints" / "step-00000004")
    again = st_cli("train", tmp_path / "run.toml", "--resume")

    assert whole.warnings() == []
    assert edit != other
    assert again.code == 0, again.err
    resumed = (whole.directory / "model" / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert resumed == kept


@pytest.mark.parametrize(
    ("references", "more", "message"),
    [
        ("", "", "has 0 references for each sample; this model needs 1"),
        ('reference_sets = ["show"]', SETS, "no data set is named 'show'. Did you mean 'shown'?"),
        ('reference_sets = ["wanted"]', "", "its reference set 'wanted' is there to be trained on"),
    ],
)
def test_what_is_missing_is_named(train: Callable[..., TinyRun], references: str, more: str, message: str) -> None:
    done = train("kontext", 1, references=references, more=more)

    assert done.result.code != 0
    assert message in done.result.err


def test_a_model_that_reads_no_references_refuses_them_before_anything_is_loaded(train: Callable[..., TinyRun]) -> None:
    done = train("krea", 1)

    assert done.result.code != 0
    assert "data set 'wanted' has references, and this model is shown none" in done.result.err


def test_references_in_the_cache_are_kept_by_prune_and_explained(
    train: Callable[..., TinyRun], st_cli: Any, pictures: Path, tmp_path: Path
) -> None:
    painted, repainted, file = tmp_path / "painted", tmp_path / "repainted", tmp_path / "run.toml"
    painted.mkdir()
    for number, path in enumerate(sorted((pictures / "shown").iterdir())):
        Image.new("RGB", (32, 32), (number, 0, 255)).save(painted / path.name)
    run = train("kontext", 1, more=SETS.replace("{folder}/shown", str(painted)))
    shutil.copytree(painted, repainted)
    Image.new("RGB", (32, 32), "white").save(repainted / "wanted-0.png")
    others = ("--set", f"dataset.2.url={repainted}")

    kept = st_cli("cache", "prune", file, "--unused", "--dry-run")
    without = st_cli("cache", "prune", file, "--unused", "--dry-run", *others)
    explained = st_cli("cache", "explain", file, "wanted-0.png")
    changed = st_cli("cache", "explain", file, "wanted-0.png", *others)

    assert run.result.code == 0, run.result.err
    assert kept.code == 0 and "not used" not in kept.out, kept.err
    assert "1 not used by this run file" in without.out, without.err
    rows = [line.split() for line in explained.out.splitlines()]
    assert explained.code == 0 and "not cached" not in explained.out, explained.err
    assert [row[-1] for row in rows if "wanted-0.png" in row] == ["cached", "cached"]
    assert "bytes was " in changed.out and changed.out.count("not cached") == 1, changed.out
