"""Checkpoints in folders and on the hub: fingerprints, and what is said of those that cannot be used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from st import StError

CPU = torch.device("cpu")
# A guard of diffusers warns where the safety checker, the image encoder or a tokenizer is left out, as it is here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")


def _rewrite(folder: Path, **changes: Any) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | changes))


def _change_a_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["encoder.conv_in.bias"][0] += 1e-3
    save_file(tensors, path, {"format": "pt"})


def test_a_fingerprint_follows_the_weights_and_not_the_place(family: Any, tmp_path: Path, pipelines: Any) -> None:
    shutil.copytree(pipelines.folder, tmp_path / "copy")
    copied = pipelines.family(tmp_path / "copy")
    before = copied.codec().fingerprint, copied.text_encoders()[0].fingerprint

    _change_a_weight(tmp_path / "copy")

    assert before == (family.codec().fingerprint, family.text_encoders()[0].fingerprint)
    assert copied.codec().fingerprint != before[0]
    assert copied.text_encoders()[0].fingerprint == before[1]


def _no_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def _other_family(folder: Path) -> None:
    _rewrite(folder, _class_name="FluxPipeline", transformer=["diffusers", "FluxTransformer2DModel"])


def _no_denoiser(folder: Path) -> None:
    shutil.rmtree(folder / "transformer")


def _no_components(folder: Path) -> None:
    (folder / "model_index.json").write_text("{}")


def test_an_index_without_components_is_refused_before_anything_is_loaded(tmp_path: Path, pipelines: Any) -> None:
    (tmp_path / "model_index.json").write_text("{}")

    with pytest.raises(StError, match="it has no 'transformer'; it names nothing\n"):
        pipelines.family(tmp_path).check_files()


def _pickled(folder: Path) -> None:
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_no_index, "is no checkpoint of diffusers\n  there is no 'model_index.json' in it"),
        (_other_family, "is not a model of this family\n  it holds a FluxPipeline with FluxTransformer2DModel"),
        (_no_components, "it holds a pipeline without a name with no transformer; StableDiffusion3Pipeline is needed"),
        (_no_denoiser, "has no 'transformer'\n"),
        (_pickled, "has no 'transformer' in safetensors"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_explained(
    tmp_path: Path, damage: Callable[[Path], None], message: str, pipelines: Any
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(pipelines.folder, copy)
    damage(copy)

    with pytest.raises(StError) as raised:
        pipelines.family(copy).load_denoiser(CPU, torch.float32)

    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("location", "message"),
    [("no/such/folder", "there is no such folder"), ("./missing", "there is no such folder")],
)
def test_a_folder_that_is_not_there_is_said(location: str, message: str, pipelines: Any) -> None:
    with pytest.raises(StError, match=message):
        pipelines.family(location).codec()


def test_a_repository_that_cannot_be_reached_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pipelines: Any
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    with pytest.raises(StError, match="is not on this machine, and the hub does not answer") as raised:
        pipelines.family("owner/name").codec()

    assert raised.value.fix == "go online and repeat, or: hf download owner/name"
