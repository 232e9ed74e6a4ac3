"""Adapter files: layouts there and back, and bytes that are written whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from st import StError
from st.errors import OutputUnwritable
from st.model.files.adapter_file import read_adapter_file, write_adapter_file
from st.model.files.composed import folded_format
from st.model.files.formats import AdapterFormat, LoraShape, clean_key, comfyui_format, kohya_format, recognise
from st.model.files.peft_layout import diffusers_format

PATHS = ["blocks.0.attn.to_q", "blocks.0.attn.to_out.0", "proj_out", "blocks.1.proj_out", "conv_in"]
SHAPE = LoraShape(
    dict(zip(PATHS, (4, 4, 2, 4, 4), strict=True)), dict(zip(PATHS, (4.0, 8.0, 1.5, 4.0, 4.0), strict=True))
)


def state(dora: bool = True) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path, rank in SHAPE.ranks.items():
        kernel = (3, 3) if path == "conv_in" else ()
        tensors[f"{path}.lora_A.weight"] = torch.randn(rank, 6, *kernel)
        tensors[f"{path}.lora_B.weight"] = torch.randn(5, rank, *[1 for _ in kernel])
        if dora:
            tensors[f"{path}.lora_magnitude_vector"] = torch.randn(1, 5, 1, 1) if kernel else torch.randn(5)
    return tensors


FORMATS = {
    "diffusers": diffusers_format("transformer"),
    "bare": diffusers_format(""),
    "comfyui": comfyui_format(),
    "renamed": comfyui_format(rename=[("blocks", "layers"), ("proj_out", "final.linear")]),
    "kohya": kohya_format(PATHS),
    "lazy": kohya_format(lambda: PATHS, "lora_transformer"),
    "folded": folded_format(comfyui_format()),
}


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_a_round_trip_is_the_identity(form: AdapterFormat, dora: bool) -> None:
    ours = state(dora)

    back, shape = form.from_file(*form.to_file(ours, SHAPE))

    assert back.keys() == ours.keys()
    assert shape == SHAPE
    for name, tensor in ours.items():
        # A scale that went into B and came out again rounds once each way.
        torch.testing.assert_close(back[name], tensor, rtol=3e-7, atol=0)


@pytest.mark.parametrize("name", ["diffusers", "comfyui", "kohya", "lazy"])
def test_a_file_is_recognised(name: str) -> None:
    tensors, metadata = FORMATS[name].to_file(state(), SHAPE)

    back, shape = recognise(tensors, PATHS).from_file(tensors, metadata)

    assert back.keys() == state().keys()
    assert shape == SHAPE


def test_names_are_those_that_other_programs_use() -> None:
    names = {name: set(FORMATS[name].to_file(state(False), SHAPE)[0]) for name in ("diffusers", "renamed", "kohya")}

    assert "transformer.blocks.0.attn.to_out.0.lora_A.weight" in names["diffusers"]
    assert {"diffusion_model.layers.0.attn.to_q.alpha", "diffusion_model.final.linear.lora_B.weight"} <= names[
        "renamed"
    ]
    assert {"lora_unet_blocks_0_attn_to_out_0.lora_down.weight", "lora_unet_conv_in.alpha"} <= names["kohya"]
    assert not any(name.endswith("alpha") for name in names["diffusers"])


@pytest.mark.parametrize(
    "key",
    [
        "base_model.model.blocks.0.to_q.lora_A.weight",
        "module.blocks.0.to_q.lora_A.weight",
        "_orig_mod.blocks.0._orig_mod.to_q.lora_A.default.weight",
        "blocks.0._fsdp_wrapped_module.to_q.lora_A.weight",
    ],
)
def test_wrappers_leave_no_trace_in_a_file(key: str) -> None:
    assert clean_key(key) == "blocks.0.to_q.lora_A.weight"


def test_a_key_of_no_known_shape_is_not_written() -> None:
    with pytest.raises(StError, match=r"'blocks.0.to_q.weight' is not the name of an adapter's tensor"):
        diffusers_format().to_file({"blocks.0.to_q.weight": torch.zeros(1)}, LoraShape({}, {}))


def test_keys_that_belong_nowhere_are_named() -> None:
    tensors = {"transformer.a.lora_A.weight": torch.zeros(2, 3), "text_encoder.a.lora_A.weight": torch.zeros(2, 3)}

    with pytest.raises(StError, match=r"1 of 2 tensors belong nowhere, such as 'text_encoder.a.lora_A.weight'"):
        diffusers_format().from_file(tensors, {})


def test_diffusers_files_act_at_a_scale_of_one() -> None:
    ours = state(False)

    tensors, metadata = diffusers_format("transformer").to_file(ours, SHAPE)

    config = json.loads(metadata["lora_adapter_metadata"])
    assert config["transformer.lora_alpha"] == config["transformer.r"]
    assert config["transformer.alpha_pattern"] == config["transformer.rank_pattern"]
    for path, rank in SHAPE.ranks.items():
        expected = SHAPE.alphas[path] / rank * ours[f"{path}.lora_B.weight"]
        torch.testing.assert_close(tensors[f"transformer.{path}.lora_B.weight"], expected)


def test_a_folded_file_says_no_alpha_and_acts_at_a_scale_of_one() -> None:
    ours = state(dora=False)

    tensors, _ = FORMATS["folded"].to_file(ours, SHAPE)
    read, _ = FORMATS["comfyui"].from_file(tensors, {})

    assert not any(key.endswith(".alpha") for key in tensors)
    for path, rank in SHAPE.ranks.items():
        torch.testing.assert_close(
            read[f"{path}.lora_B.weight"], ours[f"{path}.lora_B.weight"] * SHAPE.alphas[path] / rank
        )


def test_a_scale_that_bf16_does_not_hold_is_not_rounded() -> None:
    ours = {name: tensor.bfloat16() for name, tensor in state(False).items()}

    tensors, _ = diffusers_format("").to_file(ours, SHAPE)

    assert tensors["proj_out.lora_B.weight"].dtype == torch.float32
    assert tensors["blocks.0.attn.to_out.0.lora_B.weight"].dtype == torch.bfloat16
    assert torch.equal(tensors["proj_out.lora_B.weight"], 0.75 * ours["proj_out.lora_B.weight"].float())


OTHERS = {
    "blocks.0.attn.to_q.lokr_w1": torch.ones(2, 2),
    "blocks.0.attn.to_q.lokr_w2_a": torch.ones(3, 2),
    "blocks.0.attn.to_q.lokr_w2_b": torch.ones(2, 3),
    "blocks.0.attn.to_q.alpha": torch.tensor(1.0),
    "proj_out.ia3.weight": torch.ones(5),
    "proj_out.on_input": torch.tensor(False),
    "conv_in.lora_mid.weight": torch.ones(2, 2, 3, 3),
    "conv_in.lora_down.weight": torch.ones(2, 6, 1, 1),
    "conv_in.lora_up.weight": torch.ones(5, 2, 1, 1),
    "conv_in.alpha": torch.tensor(3.0),
}


@pytest.mark.parametrize("name", ["comfyui", "renamed", "kohya", "lazy", "folded"])
def test_other_kinds_of_updates_come_back_as_they_were(name: str) -> None:
    ours = {**OTHERS, **{key: one for key, one in state().items() if key.startswith("blocks.0.attn.to_out.0.")}}
    shape = LoraShape({"blocks.0.attn.to_out.0": 4}, {"blocks.0.attn.to_out.0": 8.0})

    tensors, metadata = FORMATS[name].to_file(ours, shape)
    back, back_shape = FORMATS[name].from_file(tensors, metadata)

    assert back.keys() == ours.keys()
    assert all(torch.equal(back[key], ours[key]) for key in ours)
    assert back_shape == shape
    assert not any("ia3" in key for key in tensors)


def test_two_layers_of_one_flat_name_are_refused() -> None:
    both = {f"{path}.diff": torch.ones(2, 2) for path in ("a.b_c", "a_b.c")}

    with pytest.raises(StError, match="have one name in this format"):
        kohya_format(["a.b_c", "a_b.c"]).to_file(both, LoraShape({}, {}))


def test_names_of_before_peft_are_read() -> None:
    tensors = {"unet.a.to_q.lora.down.weight": torch.zeros(2, 3), "unet.a.to_q.lora.up.weight": torch.zeros(5, 2)}

    back, shape = diffusers_format("unet").from_file(tensors, {})

    assert set(back) == {"a.to_q.lora_A.weight", "a.to_q.lora_B.weight"}
    assert shape == LoraShape({"a.to_q": 2}, {"a.to_q": 2.0})


def test_the_scale_of_another_programs_rslora_is_kept() -> None:
    tensors = {"transformer.a.lora_A.weight": torch.zeros(4, 3), "transformer.a.lora_B.weight": torch.zeros(5, 4)}
    config = '{"transformer.r": 4, "transformer.lora_alpha": 3, "transformer.use_rslora": true}'

    _, shape = diffusers_format().from_file(tensors, {"lora_adapter_metadata": config})

    assert shape.alphas["a"] / shape.ranks["a"] == 3 / 4**0.5


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    tensors = {"a": torch.tensor([float("nan"), 1.0]), "b": torch.tensor(2)}

    write_adapter_file(tmp_path / "new" / "a.safetensors", tensors, {"k": "v"})

    read, metadata = read_adapter_file(tmp_path / "new" / "a.safetensors")
    assert metadata == {"k": "v"}
    assert torch.equal(read["b"], tensors["b"])
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["a.safetensors"]


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(OutputUnwritable, match="cannot be written"):
        write_adapter_file(tmp_path / "file" / "a.safetensors", {"a": torch.zeros(1)}, {})


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".ckpt"])
def test_a_pickle_is_never_opened(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    torch.save({}, path)

    with pytest.raises(StError, match="is a pickle, which can run any program"):
        read_adapter_file(path)


def test_a_file_that_was_cut_off_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:-10])

    with pytest.raises(StError, match="is not a whole safetensors file"):
        read_adapter_file(path)
    with pytest.raises(StError, match="there is no file"):
        read_adapter_file(tmp_path / "b.safetensors")
