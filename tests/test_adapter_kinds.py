"""Every adapter kind goes through its family's formats: names are the makers', and files come back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import interop_tables as tables
import pytest
import torch
from safetensors.torch import load_file

from st.model.adapters.architecture import adapter_facts
from st.model.adapters.lora import LoraAdapter, LoraOptions
from st.model.files.adapter_file import read_adapter_file, write_adapter_file
from st.testing.runs import call_cli, write_photos
from st_ace_step import AceStep
from st_flux import Flux
from st_lycoris import LycorisAdapter, LycorisOptions
from st_sdxl import Sdxl
from st_wan import Wan

CPU = torch.device("cpu")


def learned(family: Any, adapter: Any) -> Any:
    """A denoiser whose adapter has left its beginning."""
    torch.manual_seed(0)
    denoiser = family.load_denoiser(CPU, torch.float32)
    adapter.attach(denoiser, family.adapter_targets(), family.adapter_formats())
    with torch.no_grad():
        for parameter in adapter.state(denoiser).values():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return denoiser


def comes_back(family: Any, file: Path, expected: Any) -> None:
    """A fresh denoiser goes on from the file with the same weights."""
    again, fresh = LycorisAdapter(LycorisOptions(start=str(file))), family.load_denoiser(CPU, torch.float32)
    again.attach(fresh, family.adapter_targets(), family.adapter_formats())
    found = again.state(fresh)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_wans_layers_have_the_makers_names(tmp_path: Path) -> None:
    family = Wan.tiny(tmp_path / "tiny")
    adapter = LycorisAdapter(LycorisOptions(rank=1, factor=2))
    denoiser = learned(family, adapter)

    file = adapter.export(family, denoiser, tmp_path, {"st_steps": "1"})

    tensors, metadata = read_adapter_file(file)
    assert "lora_unet_blocks_0_self_attn_q.lokr_w1" in tensors
    assert all(key.startswith("lora_unet_blocks_") for key in tensors)
    assert metadata["modelspec.architecture"] == "wan2.1/lora"
    assert metadata["ss_network_module"] == "lycoris.kohya"
    comes_back(family, file, adapter.state(denoiser))


@pytest.mark.parametrize("format", ["musubi", "comfyui", "diffusers"])
def test_both_experts_get_a_file_each(tmp_path: Path, format: str) -> None:
    from st_wan.formats import write_parts

    family = Wan.tiny(tmp_path / "tiny", "t2v-a14b")
    adapter = LycorisAdapter(LycorisOptions(full_matrix=True, factor=2, format=format))
    file = adapter.export(family, learned(family, adapter), tmp_path, {})

    parts = write_parts(file, {"transformer": "high-noise", "transformer_2": "low-noise"})

    alone = Wan(family.options.model_copy(update={"experts": "high"}))
    assert [one.name for one in parts] == ["adapter-high-noise.safetensors", "adapter-low-noise.safetensors"]
    start = {"musubi": "lora_unet_blocks_", "comfyui": "diffusion_model.blocks.", "diffusers": "transformer.blocks."}
    for one in parts:
        tensors, metadata = read_adapter_file(one)
        assert all(key.startswith(start[format]) for key in tensors)
        alone.adapter_formats()[format].from_file(tensors, metadata)


@pytest.mark.parametrize("format", ["kohya", "comfyui"])
def test_sdxls_text_encoders_have_names_of_their_own(tmp_path: Path, format: str) -> None:
    tiny = Sdxl.tiny(tmp_path / "tiny")
    family = Sdxl(tiny.options.model_copy(update={"train_text": True, "text_precision": "fp32"}))
    adapter = LycorisAdapter(LycorisOptions(algo="loha", rank=1, format=format))
    denoiser = learned(family, adapter)

    file = adapter.export(family, denoiser, tmp_path, {})

    tensors = load_file(file)
    starts = {"_".join(key.split("_")[:2]) for key in tensors}
    assert starts == {"lora_unet", "lora_te1", "lora_te2"}
    assert any("_input_blocks_" in key for key in tensors) == (format == "kohya")
    for prefix, table in (("lora_te1", tables.clip(12, 768, False)), ("lora_te2", tables.clip(32, 1280, True))):
        stems = {key.partition(".")[0] for key in tensors if key.startswith(prefix)}
        assert stems <= {f"{prefix}_{path.replace('.', '_')}" for path in table}
    comes_back(family, file, adapter.state(denoiser))


def test_sdxl_files_that_comfyui_saved_are_read(tmp_path: Path) -> None:
    family = Sdxl.tiny(tmp_path / "tiny")
    adapter = LoraAdapter(LoraOptions(rank=2, alpha=1, format="kohya"))
    denoiser = learned(family, adapter)
    tensors = load_file(adapter.export(family, denoiser, tmp_path, {}))
    original = {name.replace(".", "_"): name for name in original_paths(family)}
    saved = {}
    for key, tensor in tensors.items():
        stem, _, part = key.removeprefix("lora_unet_").partition(".")
        saved[f"diffusion_model.{original[stem]}.{part}"] = tensor
        saved[f"diffusion_model.{original[stem]}.diff_b"] = torch.ones(4)
    file = tmp_path / "comfyui.safetensors"
    write_adapter_file(file, saved, {})

    again, fresh = LoraAdapter(LoraOptions(start=str(file))), family.load_denoiser(CPU, torch.float32)
    again.attach(fresh, family.adapter_targets(), family.adapter_formats())
    out = tmp_path / "out.safetensors"
    options = ("--plugins", "sdxl", "--set", f"model.checkpoint={tmp_path / 'tiny'}")
    converted = call_cli("adapter", "convert", file, out, "--to", "diffusers", *options)
    shown = call_cli("adapter", "inspect", file)

    expected = adapter.state(denoiser)
    assert all(torch.equal(one, expected[name]) for name, one in again.state(fresh).items())
    assert f"{len(expected) // 2} whole differences and biases in it are left out" in again.note
    assert converted.code == 0, converted.err
    assert "differences of biases have no place in diffusers and are left out" in converted.out
    assert f"biases     {len(expected) // 2} differences" in shown.out


def original_paths(family: Any) -> list[str]:
    from st_sdxl.layers import original_names

    return list(original_names(family.module_paths()).values())


def test_files_of_kronecker_products_with_dots_go_on(tmp_path: Path) -> None:
    family = Flux.tiny(tmp_path / "tiny")
    adapter = LycorisAdapter(LycorisOptions(full_matrix=True, factor=2, format=("comfyui", "diffusers")))
    denoiser = learned(family, adapter)

    file = adapter.export(family, denoiser, tmp_path, {})

    assert all(
        (key.startswith("transformer.") and ".lokr_w" in key) or key.endswith(".alpha") for key in load_file(file)
    )
    comes_back(family, file, adapter.state(denoiser))
    comes_back(family, tmp_path / "adapter-diffusers.safetensors", adapter.state(denoiser))


def test_files_of_the_library_are_shown_and_added(tmp_path: Path) -> None:
    family = Flux.tiny(tmp_path / "tiny")
    adapter = LycorisAdapter(LycorisOptions(rank=1, factor=2, alpha=3))
    denoiser = learned(family, adapter)
    file, merged = adapter.export(family, denoiser, tmp_path, {}), tmp_path / "merged.safetensors"

    shown = call_cli("adapter", "inspect", file, "--plugins", "lycoris")
    added = call_cli("adapter", "merge", file, file, merged, "--weights", "1,0.5", "--plugins", "lycoris")
    unknown = call_cli("adapter", "inspect", file)

    assert (shown.code, added.code, unknown.code) == (0, 0, 1), shown.err + added.err
    assert "rank       1" in shown.out
    assert "strongest" in shown.out
    assert "--plugins NAME" in unknown.err
    path, layer = next(one for one in denoiser.named_modules() if hasattr(one[1], "lycoris"))
    with torch.no_grad():
        inputs = torch.eye(layer.in_features)
        change = (layer(inputs) - layer.lycoris.org_forward(inputs)).T
    torch.testing.assert_close(load_file(merged)[f"transformer.{path}.diff"], 1.5 * change, rtol=0, atol=1e-4)


def test_models_have_names_among_other_programs(tmp_path: Path) -> None:
    for family, architecture in (
        (Wan.tiny(tmp_path / "wan"), "wan2.1/lora"),
        (Wan.tiny(tmp_path / "wan-2", "ti2v-5b"), "wan2.2/lora"),
        (AceStep.tiny(tmp_path / "ace"), "ace-step-v1.5/lora"),
    ):
        facts = adapter_facts(family, "lora")
        assert facts["modelspec.architecture"] == architecture
        assert facts["modelspec.sai_model_spec"] == "1.0.0"
        assert facts["modelspec.implementation"].startswith("https://github.com/")
        assert facts["ss_network_module"].startswith("networks.")
        assert facts["ss_base_model_version"]


RUN = """
plugins = {plugins}
output = {output}
steps = 2
device = "cpu"
[model]
checkpoint = {checkpoint}
[adapter]
{adapter}
[[dataset]]
url = {photos}
resolution = 64
"""


@pytest.mark.parametrize(
    ("plugins", "adapter", "code", "word"),
    [
        (["flux"], 'use_dora = true\nformat = ["diffusers", "kohya"]', 2, "dora is planned for some of them only"),
        (["flux"], 'use_dora = true\nformat = "comfyui"', 0, "norm of the untrained weights"),
        (["flux", "lycoris"], 'kind = "lycoris"\nformat = "kohya"', 2, "cannot be one update"),
        (["flux", "lycoris"], 'kind = "lycoris"\nalgo = "ia3"\nformat = "comfyui"', 0, "Note: adapter.format"),
        (["wan"], 'use_dora = true\nformat = "musubi"', 0, "reads lora without dora"),
        (["wan", "lycoris"], 'kind = "lycoris"\nalgo = "loha"\nformat = "diffusers"', 2, "cannot read loha"),
        (["wan", "lycoris"], 'kind = "lycoris"\nuse_dora = true', 0, "'comfyui': ComfyUI divides the magnitudes"),
    ],
)
def test_the_plan_says_what_a_file_cannot_hold(
    tmp_path: Path, plugins: list[str], adapter: str, code: int, word: str
) -> None:
    checkpoint = tmp_path / "tiny"
    {"flux": Flux, "wan": Wan}[plugins[0]].tiny(checkpoint)
    places = {"output": tmp_path / "out", "checkpoint": checkpoint, "photos": write_photos(tmp_path / "photos")}
    named = {name: json.dumps(str(path)) for name, path in places.items()}
    file = tmp_path / "run.toml"
    file.write_text(RUN.format(plugins=json.dumps(plugins), adapter=adapter, **named))

    result = call_cli("train", file, "--dry-run")

    assert result.code == code, result.err
    assert word in " ".join((result.out + result.err).split())
