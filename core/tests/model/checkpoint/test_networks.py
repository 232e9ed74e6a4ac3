"""Every part of a checkpoint is loaded whole or refused by name, and no code of it is run."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from st.errors import StError
from st.model.checkpoint.networks import load_network

CPU = torch.device("cpu")

LOADERS: dict[str, Callable[[Any], object]] = {
    "transformer": lambda family: family.load_denoiser(CPU, torch.float32),
    "vae": lambda family: family.codec().load(CPU),
    "text_encoder": lambda family: _encodes(family),
    "text_encoder_2": lambda family: _encodes(family),
}


def _encodes(family: Any) -> None:
    with family.text_encoders()[0].open(CPU):
        pass


@pytest.fixture
def copy(pipelines: Any, tmp_path: Path) -> Path:
    shutil.copytree(pipelines.folder, tmp_path / "copy")
    return tmp_path / "copy"


def weights_of(folder: Path, component: str) -> Path:
    return next((folder / component).glob("*.safetensors"))


@pytest.mark.parametrize("component", LOADERS)
def test_a_weight_that_is_missing_is_named(pipelines: Any, copy: Path, component: str) -> None:
    file = weights_of(copy, component)
    state = load_file(file)
    # Not the first: embeddings may be tied to others.
    gone = next(name for name in sorted(state) if name.endswith(".weight") and "norm" in name)
    save_file({name: tensor for name, tensor in state.items() if name != gone}, file, {"format": "pt"})

    with pytest.raises(StError, match=f"its '{component}' cannot be used") as raised:
        LOADERS[component](pipelines.family(copy))

    assert "1 of its weights are not there" in raised.value.why
    assert gone.rpartition(".")[0].rpartition(".")[2] in raised.value.why


def test_a_weight_that_is_missing_is_named_on_its_way_to_a_device(pipelines: Any, copy: Path) -> None:
    file = weights_of(copy, "transformer")
    state = load_file(file)
    del state["proj_out.weight"]
    save_file(state, file, {"format": "pt"})

    with pytest.raises(StError, match="its 'transformer' cannot be used") as raised:
        pipelines.family(copy).load_denoiser(torch.device("meta"), torch.float32)

    assert raised.value.why == "1 of its weights are not there, such as 'proj_out.weight'"


@pytest.mark.parametrize("component", LOADERS)
def test_a_weight_that_is_no_number_is_named(pipelines: Any, copy: Path, component: str) -> None:
    file = weights_of(copy, component)
    state = load_file(file)
    spoilt = next(name for name in sorted(state) if name.endswith(".weight") and "norm" in name)
    state[spoilt].view(-1)[0] = float("nan")
    save_file(state, file, {"format": "pt"})

    with pytest.raises(StError, match=f"'{component}': 1 weights .* are not finite"):
        LOADERS[component](pipelines.family(copy))


def _cut(folder: Path) -> None:
    file = next(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])


def _absurd(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    name = next(name for name in ("num_layers", "num_hidden_layers", "layers_per_block") if name in config)
    (folder / "config.json").write_text(json.dumps({**config, name: 10**7}))


def _wide(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    name = next(name for name in ("attention_head_dim", "d_model", "hidden_size", "latent_channels") if name in config)
    (folder / "config.json").write_text(json.dumps({**config, name: 10**7}))


def _written(text: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / "config.json").write_text(text)

    return damage


DAMAGE = {
    "cut": _cut,
    "absurd": _absurd,
    "wide": _wide,
    "deep": _written("[" * 100_000),
    "digits": _written('{"num_layers": ' + "9" * 5000 + "}"),
    "surrogate": _written('{"_class_name": "\\ud800"}'),
    "list": _written("[]"),
    "empty": _written(""),
}


@pytest.mark.parametrize("component", ["transformer", "vae", "text_encoder"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_malformed_part_is_one_error(pipelines: Any, copy: Path, component: str, damage: str) -> None:
    DAMAGE[damage](copy / component)

    with pytest.raises(StError) as raised:
        LOADERS[component](pipelines.family(copy))

    assert str(raised.value).encode()
    assert component in str(raised.value)
    assert len(str(raised.value).splitlines()) <= 3


def test_a_tokenizer_that_brings_its_own_code_is_refused_unasked(
    pipelines: Any, copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (copy / "tokenizer" / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: pass\n")
    (copy / "tokenizer" / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}})
    )
    monkeypatch.setattr(sys, "stdin", StringIO("y\n" * 10))

    with pytest.raises(StError, match="'tokenizer' cannot be used"):
        pipelines.family(copy).text_encoders()[0].count_tokens("a cat")

    assert not (tmp_path / "ran").exists()
    assert sys.stdin.read() == "y\n" * 10


@pytest.mark.parametrize(
    "entry", [["subprocess", "Popen"], ["os", "system"], ["diffusers", "nothing"], "x", None, [1, 2]]
)
def test_a_part_of_another_library_is_not_loaded(pipelines: Any, copy: Path, entry: object) -> None:
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, "vae": entry}))

    with pytest.raises(StError, match="'vae'"):
        pipelines.family(copy).codec().load(CPU)


def test_converted_weights_go_to_their_device_without_lying_on_the_host_first(pipelines: Any) -> None:
    from diffusers import SD3Transformer2DModel

    folder, kind, half = pipelines.folder / "transformer", SD3Transformer2DModel, torch.float16
    # A device without numbers, which nothing could be moved to and be looked at again.
    nowhere = load_network(kind, folder, "it", dtype=half, device=torch.device("meta"))
    placed, plain = (load_network(kind, folder, "it", dtype=half, device=device) for device in (CPU, None))

    assert {one.device.type for one in nowhere.parameters()} == {"meta"}
    assert not hasattr(placed, "hf_device_map")
    assert all(map(torch.equal, placed.state_dict().values(), plain.state_dict().values()))
