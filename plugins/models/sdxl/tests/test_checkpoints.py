"""Checkpoints that cannot be used are explained; those that are saved say what they were taught."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from st import Geometry, Input, Shot, StError
from st.data.cache.encoder_run import EncoderRun
from st.errors import SampleUnreadable
from st.testing import CliResult
from st_sdxl import Sdxl
from st_sdxl.layers import original_names

# A guard of diffusers warns where the text encoders are left out, as they are here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")
CPU = torch.device("cpu")
Make = Callable[..., Sdxl]
Rewrite = Callable[..., Path]
Told = Callable[..., Mapping[str, Tensor]]


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (
            "model_index.json",
            {"_class_name": "FluxPipeline", "unet": [None, None]},
            "is not a model of this family\n  it holds a FluxPipeline with no unet",
        ),
        ("unet/config.json", {"addition_embed_type": None}, "is not a model of this family"),
        ("unet/config.json", {"encoder_hid_dim_type": "text_proj"}, "is not a model of this family"),
        ("unet/config.json", {"in_channels": 9}, "takes 9 channels: it fills in or edits pictures"),
        (
            "unet/config.json",
            {"projection_class_embeddings_input_dim": 32 + 5 * 8},
            "is a refiner, and model.flavour is 'base-1.0'\n  set model.flavour to \"refiner-1.0\"",
        ),
        ("scheduler/scheduler_config.json", {"beta_end": 0.02}, "on another noise schedule (beta_end = 0.02)"),
        ("scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}, "set model.prediction to \"v\""),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "set model.zero_terminal_snr to true"),
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_kind_is_explained_before_anything_is_encoded(
    make: Make, rewrite: Rewrite, file: str, changes: dict[str, Any], message: str
) -> None:
    family = make(checkpoint=str(rewrite(file, **changes)))

    with pytest.raises(StError) as raised:
        family.codec()

    assert message in str(raised.value)


def test_a_base_model_is_no_refiner(make: Make) -> None:
    with pytest.raises(StError, match=r"is a base model, and model\.flavour is 'refiner-1\.0'"):
        make(flavour="refiner-1.0").load_denoiser(CPU, torch.float32)


@pytest.mark.parametrize("component", ["unet", "vae", "text_encoder", "text_encoder_2", "scheduler"])
def test_a_missing_folder_is_named_before_anything_is_encoded(
    make: Make, checkpoint: Path, tmp_path: Path, component: str
) -> None:
    shutil.copytree(checkpoint, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / component)

    with pytest.raises(StError, match=f"has no '{component}'\n"):
        make(checkpoint=str(tmp_path / "copy")).codec()


def test_a_checkpoint_that_says_v_is_trained_on_v(make: Make, rewrite: Rewrite) -> None:
    folder = rewrite("scheduler/scheduler_config.json", prediction_type="v_prediction")

    make(checkpoint=str(folder), prediction="v").codec()


@pytest.mark.parametrize("error", ["gated", "offline"])
def test_one_line_says_what_to_do_about_a_repository(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    if error == "gated":
        monkeypatch.setattr("huggingface_hub.snapshot_download", _gated)

    with pytest.raises(StError) as raised:
        make(checkpoint="").codec()

    assert "'stabilityai/stable-diffusion-xl-base-1.0'" in raised.value.what
    fixes = {
        "gated": "accept its terms there, then: hf auth login",
        "offline": "go online and repeat, or: hf download stabilityai/stable-diffusion-xl-base-1.0",
    }
    assert raised.value.fix == fixes[error]


def _gated(*_: object, **__: object) -> str:
    from huggingface_hub.errors import GatedRepoError

    # Its constructor wants the hub's answer, in a type that changes from version to version.
    raise GatedRepoError.__new__(GatedRepoError)


def test_an_unknown_flavour_is_answered_with_those_there_are(
    run_file: Callable[[str], Path], st_cli: Callable[..., CliResult]
) -> None:
    text = 'plugins = ["sdxl"]\noutput = "out"\nsteps = 1\n[model]\nflavour = "refiner"\n[[dataset]]\nurl = "photos"\n'

    result = st_cli("train", run_file(text), "--dry-run")

    assert result.code == 2
    assert "must be 'base-1.0', 'base-0.9', 'refiner-1.0' or 'refiner-0.9'." in result.err
    assert "Did you mean 'refiner-1.0' or 'refiner-0.9'?" in result.err


def louder(folder: Path) -> Path:
    """Make the autoencoder's activations too large for float16, with the same latents in float32."""
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    for name in ("encoder.conv_in.weight", "encoder.conv_in.bias", "decoder.conv_in.weight", "decoder.conv_in.bias"):
        weights[name] *= 1e6
    save_file(weights, file, {"format": "pt"})
    return folder


def test_an_autoencoder_that_overflows_in_half_precision_is_named(make: Make, rewrite: Rewrite) -> None:
    folder = louder(rewrite("vae/config.json", force_upcast=False))
    codec = make(checkpoint=str(folder), autoencoder_precision="fp16").codec()
    given = [Input(key="a.png", geometry=Geometry(64, 64), pixels=torch.rand(3, 64, 64))]

    with codec.open(CPU) as encode:
        (answer,) = EncoderRun(codec, encode, 1)(given)

    assert isinstance(answer, SampleUnreadable)
    assert answer.reason.startswith("encoder 'vae' gives NaN or infinity for 'a.png' (latents, torch.float16); float16")
    assert answer.reason.endswith("; run this encoder in bfloat16 or float32")


def test_a_preview_that_overflows_in_half_precision_is_named(make: Make, rewrite: Rewrite, told: Told) -> None:
    family = make(checkpoint=str(louder(rewrite("vae/config.json", force_upcast=False))))

    with pytest.raises(StError, match="the autoencoder overflows in float16"):
        family.render(
            family.load_denoiser(CPU, torch.float16),
            Shot(told(family, "a"), None, Geometry(64, 64), seed=1, steps=1, guidance=1.0),
        )


def test_a_saved_model_says_what_it_was_taught(
    make: Make, upstream: Callable[..., Any], checkpoint: Path, tmp_path: Path
) -> None:
    family = make(prediction="v", zero_terminal_snr=True)
    before = (checkpoint / "scheduler" / "scheduler_config.json").read_text()

    family.save_checkpoint(family.load_denoiser(CPU, torch.float32), tmp_path / "model")

    config = json.loads((tmp_path / "model" / "scheduler" / "scheduler_config.json").read_text())
    taught = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    assert {name: config[name] for name in taught} == taught
    assert upstream(tmp_path / "model").scheduler.config.prediction_type == "v_prediction"
    assert (checkpoint / "scheduler" / "scheduler_config.json").read_text() == before
    make(checkpoint=str(tmp_path / "model"), prediction="v", zero_terminal_snr=True).codec()


def test_a_preview_is_sampled_as_the_model_was_taught(
    make: Make, upstream: Callable[..., Any], told: Told, tmp_path: Path
) -> None:
    family = make(prediction="v", zero_terminal_snr=True)
    denoiser = family.load_denoiser(CPU, torch.float32)
    family.save_checkpoint(denoiser, tmp_path / "model")
    prompt, negative = told(family, "a"), told(family, "b")

    picture = family.render(denoiser, Shot(prompt, negative, Geometry(64, 64), seed=5, steps=2, guidance=3.0))

    expected = upstream(tmp_path / "model")(
        "a", negative_prompt="b", height=64, width=64, num_inference_steps=2, guidance_scale=3.0,
        guidance_rescale=0.7, generator=torch.Generator().manual_seed(5), output_type="pt",
    ).images  # fmt: skip
    torch.testing.assert_close(picture, expected, rtol=0, atol=1e-5)


def test_a_single_file_as_its_makers_wrote_it_is_the_same_unet(make: Make, tmp_path: Path) -> None:
    expected = make().load_denoiser(CPU, torch.float32)
    named = original_names([path for path, _ in expected.named_modules()])
    weights = {}
    for name, tensor in expected.state_dict().items():
        path, _, kind = name.rpartition(".")
        weights[f"model.diffusion_model.{named[path]}.{kind}"] = tensor.contiguous()
    save_file(weights, tmp_path / "theirs.safetensors")

    actual = make(denoiser=str(tmp_path / "theirs.safetensors")).load_denoiser(CPU, torch.float32)

    found = actual.state_dict()
    assert found.keys() == expected.state_dict().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.state_dict().items())
