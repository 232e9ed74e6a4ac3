"""What a user can ask for, and what is said of what cannot be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from st import StError
from st.model.adapters.assistant import find_assistant
from st.model.adapters.targets import match_modules
from st_flux import Flux, FluxOptions
from st_flux.flavours import FLAVOURS, TARGETS

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")
RUN = """
plugins = ["flux"]
output = "out"
steps = 1
[model]
{model}
[[dataset]]
url = "photos"
"""


@pytest.mark.parametrize(
    ("name", "count"),
    [("mmdit", 190), ("all", 266), ("all+ffs", 418), ("context", 76), ("context+ffs", 114), ("tiny", 2), ("nano", 1)],
)
@pytest.mark.parametrize("fuse_qkv", [False, True])
def test_targets_are_the_layers_that_they_say(name: Any, count: int, fuse_qkv: bool) -> None:
    family = Flux(FluxOptions(targets=name, fuse_qkv=fuse_qkv))
    with torch.device("meta"):
        denoiser: Any = FluxTransformer2DModel(guidance_embeds=True)
    if fuse_qkv:
        from st_flux.projections import fuse

        fuse(denoiser)

    paths = match_modules(denoiser, family.adapter_targets())

    threes = sum(path.endswith(("to_qkv", "to_added_qkv")) for path in paths)
    assert len(paths) + 2 * threes == count
    assert "proj_out" not in paths


def test_every_flavour_names_a_repository_and_nothing_is_fetched_before_it_is_needed() -> None:
    for name, flavour in FLAVOURS.items():
        family = Flux(FluxOptions.model_validate({"flavour": name}))

        assert family.options.checkpoint == flavour.repository
        assert family.options.tokens == (256 if name == "schnell" else 512)
        assert family.options.masks is (name == "libreflux")
        assert list(family.adapter_formats()) == ["diffusers", "comfyui", "kohya"]


def test_a_flavour_that_is_unknown_is_said_with_the_list(run_file: Callable[[str], Path], st_cli: Any) -> None:
    file = run_file(RUN.format(model='flavour = "kontex"'))

    result = st_cli("train", file, "--dry-run")

    assert result.code == 2
    assert "kontext" in result.err
    assert all(name in result.err for name in FLAVOURS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance": (3.0, 1.0)}, "is no range"),
        ({"guidance": -1.0}, "is no range"),
        ({"checkpoint": "flux.safetensors"}, "name a single file of weights in denoiser"),
        ({"max_tokens": 600}, "less than or equal to 512"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FluxOptions(**options)


def test_captions_that_are_cut_off_are_counted(make_family: Any) -> None:
    (encoder,) = make_family().text_encoders()
    (longer,) = make_family(max_tokens=120).text_encoders()

    assert encoder.count_tokens("b" * 10) == (12, 12)
    assert encoder.count_tokens("b" * 100) == (102, 48)
    assert longer.count_tokens("b" * 100) == (102, 102)


def copied(folder: Path, where: Path) -> Path:
    shutil.copytree(folder, where)
    return where


@pytest.mark.parametrize(
    ("component", "use"),
    [
        ("transformer", lambda family: family.load_denoiser(CPU, torch.float32)),
        ("vae", lambda family: family.codec().fingerprint),
        ("text_encoder_2", lambda family: family.text_encoders()[0].fingerprint),
        ("tokenizer", lambda family: family.text_encoders()[0].fingerprint),
        ("scheduler", lambda family: family.time_shift(16)),
    ],
)
def test_a_component_that_is_not_there_is_named(
    folder: Path, tmp_path: Path, component: str, use: Callable[[Flux], Any]
) -> None:
    broken = copied(folder, tmp_path / "copy")
    shutil.rmtree(broken / component)

    with pytest.raises(StError, match=f"model.checkpoint = .* has no '{component}'"):
        use(Flux(FluxOptions(checkpoint=str(broken))))


def test_a_checkpoint_of_another_family_is_refused(folder: Path, tmp_path: Path) -> None:
    other = copied(folder, tmp_path / "copy")
    index = json.loads((other / "model_index.json").read_text())
    index |= {"_class_name": "StableDiffusion3Pipeline", "transformer": ["diffusers", "SD3Transformer2DModel"]}
    (other / "model_index.json").write_text(json.dumps(index))

    with pytest.raises(StError, match="is not a model of this family") as raised:
        Flux(FluxOptions(checkpoint=str(other))).codec()

    assert raised.value.why == "it holds a StableDiffusion3Pipeline with SD3Transformer2DModel; FluxPipeline is needed"


def test_a_model_for_filling_is_refused(folder: Path, tmp_path: Path) -> None:
    other = copied(folder, tmp_path / "copy")
    config = json.loads((other / "transformer" / "config.json").read_text())
    wide: Any = FluxTransformer2DModel.from_config({**config, "in_channels": 384, "out_channels": 64})
    wide.save_pretrained(other / "transformer")

    with pytest.raises(StError, match="is a model for filling or control"):
        Flux(FluxOptions(checkpoint=str(other))).load_denoiser(CPU, torch.float32)


def test_guidance_for_a_model_that_is_told_none_is_refused(folder: Path, tmp_path: Path) -> None:
    other = copied(folder, tmp_path / "copy")
    config = json.loads((other / "transformer" / "config.json").read_text())
    plain: Any = FluxTransformer2DModel.from_config({**config, "guidance_embeds": False})
    plain.save_pretrained(other / "transformer")

    with pytest.raises(StError, match=r"model\.guidance has no effect"):
        Flux(FluxOptions(checkpoint=str(other), guidance=2.0)).load_denoiser(CPU, torch.float32)

    Flux(FluxOptions(checkpoint=str(other))).load_denoiser(CPU, torch.float32)


@pytest.mark.parametrize("subfolder", [None, "", "inside/it"])
def test_the_denoiser_can_lie_elsewhere(
    make_family: Any, sample: Any, folder: Path, tmp_path: Path, subfolder: str | None
) -> None:
    place = tmp_path / "own" / ("transformer" if subfolder is None else subfolder)
    weights = another_denoiser(folder, place)
    family = make_family(denoiser=str(tmp_path / "own"), denoiser_subfolder=subfolder)

    denoiser = family.load_denoiser(CPU, torch.float32)

    assert all(torch.equal(tensor, weights[name]) for name, tensor in denoiser.state_dict().items())
    assert "transformer_blocks.1.attn.to_q" in family.module_paths()


def another_denoiser(folder: Path, place: Path) -> dict[str, torch.Tensor]:
    shutil.copytree(folder / "transformer", place, dirs_exist_ok=True)
    file = place / "diffusion_pytorch_model.safetensors"
    weights = {name: tensor * 2 for name, tensor in load_file(file).items()}
    save_file(weights, file, {"format": "pt"})
    return weights


def test_the_denoiser_can_be_a_single_file(make_family: Any, folder: Path, tmp_path: Path) -> None:
    weights = another_denoiser(folder, tmp_path / "own")
    shutil.move(tmp_path / "own" / "diffusion_pytorch_model.safetensors", tmp_path / "flux.safetensors")

    denoiser = make_family(denoiser=str(tmp_path / "flux.safetensors")).load_denoiser(CPU, torch.float32)

    assert all(torch.equal(tensor, weights[name]) for name, tensor in denoiser.state_dict().items())


def test_a_single_file_of_something_else_is_refused(make_family: Any, tmp_path: Path) -> None:
    save_file({"encoder.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    family = make_family(denoiser=str(tmp_path / "other.safetensors"))

    with pytest.raises(StError, match=r"model.denoiser = .* is not a model of this family"):
        family.load_denoiser(CPU, torch.float32)


@pytest.mark.parametrize(
    ("denoiser", "message"),
    [
        ("no/such/folder", "there is no such folder"),
        ("missing.safetensors", "there is no such file"),
        ("flux.gguf", "cannot be read"),
    ],
)
def test_a_denoiser_that_is_not_there_is_said(make_family: Any, denoiser: str, message: str) -> None:
    with pytest.raises(StError, match=rf"model.denoiser = .*{message}"):
        make_family(denoiser=denoiser).load_denoiser(CPU, torch.float32)


def test_a_denoiser_in_another_folder_is_pointed_at(make_family: Any, folder: Path, tmp_path: Path) -> None:
    another_denoiser(folder, tmp_path / "own" / "denoiser")

    with pytest.raises(StError) as raised:
        make_family(denoiser=str(tmp_path / "own")).load_denoiser(CPU, torch.float32)

    assert str(raised.value).splitlines()[1:] == [
        "  there is one in denoiser",
        "  set model.denoiser_subfolder to the folder that holds it, '' for the top",
    ]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No hub, and nothing fetched before."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))


@pytest.mark.usefixtures("offline")
def test_a_repository_that_cannot_be_reached_is_said() -> None:
    with pytest.raises(StError, match="is not on this machine, and the hub does not answer") as raised:
        Flux(FluxOptions()).codec()

    assert raised.value.fix == "go online and repeat, or: hf download black-forest-labs/FLUX.1-Krea-dev"


@pytest.mark.usefixtures("offline")
def test_an_assistant_that_cannot_be_reached_is_said() -> None:
    with pytest.raises(StError, match=r"model.assistant = 'ostris/FLUX.1-schnell-training-adapter' is not on this"):
        find_assistant(FLAVOURS["schnell"].assistant)


class Gate(BaseHTTPRequestHandler):
    """A hub that shows its repositories to nobody who has not agreed."""

    def do_GET(self) -> None:
        self.send_response(401)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def gated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A hub on this machine, nobody logged in, and nothing fetched before."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Gate) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        yield
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("gated")
def test_a_gated_repository_without_a_login_is_said() -> None:
    with pytest.raises(StError, match="asks for an agreement first") as raised:
        Flux(FluxOptions(flavour="dev")).codec()

    assert raised.value.fix == "accept its terms there, then: hf auth login"


def test_targets_of_every_name_are_tried() -> None:
    assert set(TARGETS) == set(FluxOptions.model_json_schema()["properties"]["targets"]["enum"])
    assert set(FLAVOURS) == set(FluxOptions.model_json_schema()["properties"]["flavour"]["enum"])
