"""A denoiser that lies by itself: where it may be, and what is said of what cannot be used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from st import StError
from st.model.checkpoint.weights import Weights

CPU = torch.device("cpu")
FILE = "diffusion_pytorch_model.safetensors"
COMMIT = "0" * 40


def another(pipelines: Any, place: Path) -> dict[str, Tensor]:
    """A denoiser of the checkpoint's kind with other weights, in a folder."""
    shutil.copytree(pipelines.folder / "transformer", place)
    weights = {name: tensor * 2 for name, tensor in load_file(place / FILE).items()}
    save_file(weights, place / FILE, {"format": "pt"})
    return weights


def holds(denoiser: Any, weights: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, weights[name]) for name, tensor in denoiser.state_dict().items())


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The files of ``owner/name`` as they were fetched before; the hub is out of reach."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    place = tmp_path / "hub" / "models--owner--name"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    snapshot = place / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    return snapshot


@pytest.mark.parametrize(("inside", "subfolder"), [("transformer", None), ("", ""), ("deep/er", "deep/er")])
def test_a_denoiser_is_found_in_a_folder(pipelines: Any, tmp_path: Path, inside: str, subfolder: str | None) -> None:
    weights = another(pipelines, tmp_path / "own" / inside)
    family = pipelines.family(denoiser=str(tmp_path / "own"), denoiser_subfolder=subfolder)

    assert holds(family.load_denoiser(CPU, torch.float32), weights)
    assert "transformer_blocks.2.attn.to_q" in family.module_paths()


def test_a_denoiser_is_found_in_a_repository(pipelines: Any, repository: Path) -> None:
    weights = another(pipelines, repository / "transformer")

    assert holds(pipelines.family(denoiser="owner/name").load_denoiser(CPU, torch.float32), weights)


def test_a_denoiser_is_found_in_a_single_file(pipelines: Any, tmp_path: Path) -> None:
    weights = another(pipelines, tmp_path / "own")

    family = pipelines.family(denoiser=str(shutil.move(tmp_path / "own" / FILE, tmp_path / "one.safetensors")))

    assert holds(family.load_denoiser(CPU, torch.float32), weights)
    assert "transformer_blocks.2.attn.to_q" in family.module_paths()


def test_a_single_file_is_found_in_a_repository(repository: Path) -> None:
    (repository / "files").mkdir()
    (repository / "files" / "one.safetensors").write_bytes(b"")

    assert Weights("owner/name/files/one.safetensors").file() == repository / "files" / "one.safetensors"


def test_a_checkpoint_with_a_denoiser_of_its_own_is_saved_with_that(pipelines: Any, tmp_path: Path) -> None:
    weights = another(pipelines, tmp_path / "own")
    family = pipelines.family(denoiser=str(tmp_path / "own"), denoiser_subfolder="")

    family.save_checkpoint(family.load_denoiser(CPU, torch.float32), tmp_path / "saved")

    assert holds(pipelines.family(tmp_path / "saved").load_denoiser(CPU, torch.float32), weights)


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("no/such/folder", "there is no such folder"),
        ("./missing", "there is no such folder"),
        ("missing.safetensors", "there is no such file"),
        ("./missing/one.safetensors", "there is no such file"),
        ("owner/name/absent.safetensors", "'owner/name' has no 'absent.safetensors'"),
        ("weights.ckpt", "cannot be read"),
        ("weights.gguf", "cannot be read"),
    ],
)
@pytest.mark.usefixtures("repository")
def test_what_is_not_there_is_said(pipelines: Any, location: str, message: str) -> None:
    with pytest.raises(StError, match=rf"model\.denoiser = {location!r}.*{message}"):
        pipelines.family(denoiser=location).load_denoiser(CPU, torch.float32)


def test_a_denoiser_in_another_folder_is_pointed_at(pipelines: Any, tmp_path: Path) -> None:
    another(pipelines, tmp_path / "own" / "elsewhere")

    with pytest.raises(StError, match="has no 'transformer/config\\.json'") as raised:
        pipelines.family(denoiser=str(tmp_path / "own")).load_denoiser(CPU, torch.float32)

    assert raised.value.why == "there is one in elsewhere"


def test_a_denoiser_of_another_kind_is_refused(pipelines: Any, tmp_path: Path) -> None:
    another(pipelines, tmp_path / "own")
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    (tmp_path / "own" / "config.json").write_text(json.dumps(config | {"_class_name": "UNet2DConditionModel"}))
    family = pipelines.family(denoiser=str(tmp_path / "own"), denoiser_subfolder="")

    with pytest.raises(StError, match=r"model\.denoiser = .* is not a model of this family") as raised:
        family.load_denoiser(CPU, torch.float32)

    assert raised.value.why == "it is a UNet2DConditionModel; SD3Transformer2DModel is needed"


@pytest.mark.parametrize("cut", [0, 5])
def test_a_single_file_of_something_else_is_refused(pipelines: Any, tmp_path: Path, cut: int) -> None:
    weights = another(pipelines, tmp_path / "own")
    kept = dict(list(weights.items())[:cut]) or {"encoder.weight": torch.zeros(2)}
    save_file(kept, tmp_path / "one.safetensors")

    with pytest.raises(StError, match=r"model\.denoiser = .* is not a model of this family"):
        pipelines.family(denoiser=str(tmp_path / "one.safetensors")).load_denoiser(CPU, torch.float32)


def test_weights_that_are_missing_are_not_made_up(pipelines: Any, tmp_path: Path) -> None:
    weights = another(pipelines, tmp_path / "own")
    del weights["transformer_blocks.1.attn.to_q.bias"]
    save_file(weights, tmp_path / "own" / FILE, {"format": "pt"})
    family = pipelines.family(denoiser=str(tmp_path / "own"), denoiser_subfolder="")

    with pytest.raises(StError, match="its 'transformer' cannot be used") as raised:
        family.load_denoiser(CPU, torch.float32)

    assert raised.value.why == "1 of its weights are not there, such as 'transformer_blocks.1.attn.to_q.bias'"
