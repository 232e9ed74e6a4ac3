"""Adapter files have the names that other programs read, and come back as they went out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from st import Outcome, StError
from st.model.adapters.lora import LoraAdapter, LoraOptions
from st.model.files.adapter_file import read_adapter_file
from st.model.files.formats import UnknownTensors, shape_of
from st.model.files.peft_layout import METADATA
from st.testing.examples import awake_denoiser
from st_wan import Wan
from st_wan.formats import makers_name, our_name, write_parts

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")
LAYOUTS = ("diffusers", "comfyui", "musubi")
EVERYTHING = ("blocks.*", "condition_embedder.*", "proj_out", "patch_embedding")


def trained(family: Wan, denoiser: nn.Module, **options: Any) -> LoraAdapter:
    """An adapter whose scale is not 1 and whose weights have all been moved."""
    adapter = LoraAdapter(LoraOptions(rank=4, alpha=8, **options))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in adapter.attach(denoiser, family.adapter_targets())[0]["params"]:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return adapter


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("flavour", ["t2v-1.3b", "i2v-480p", "ti2v-5b", "vace-1.3b"])
def test_every_layer_comes_back_from_every_layout(make_family: Any, flavour: str, layout: str) -> None:
    family = make_family(flavour)
    denoiser = family.load_denoiser(torch.device("cpu"), torch.float32)
    more = ("vace_blocks.*", "vace_patch_embedding") if flavour == "vace-1.3b" else ()
    state, shape = trained(family, denoiser, targets=(*EVERYTHING, *more)).portable(denoiser)
    form = family.adapter_formats()[layout]

    file, header = form.to_file(state, shape)
    back, back_shape = form.from_file(file, header)
    again, again_header = form.to_file(back, back_shape)

    assert len(shape.ranks) > 30 and back_shape == shape
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)
    assert again.keys() == file.keys() and all(torch.equal(again[name], file[name]) for name in file)
    assert again_header == header


def test_names_are_the_makers() -> None:
    pairs = {
        "blocks.3.attn1.to_q": "blocks.3.self_attn.q",
        "blocks.3.attn1.to_out.0": "blocks.3.self_attn.o",
        "blocks.12.attn2.to_k": "blocks.12.cross_attn.k",
        "blocks.12.attn2.add_v_proj": "blocks.12.cross_attn.v_img",
        "blocks.0.ffn.net.0.proj": "blocks.0.ffn.0",
        "blocks.0.ffn.net.2": "blocks.0.ffn.2",
        "vace_blocks.0.proj_in": "vace_blocks.0.before_proj",
        "vace_blocks.7.attn1.to_v": "vace_blocks.7.self_attn.v",
        "condition_embedder.time_embedder.linear_2": "time_embedding.2",
        "condition_embedder.time_proj": "time_projection.1",
        "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
        "proj_out": "head.head",
    }

    assert {ours: makers_name(ours) for ours in pairs} == pairs
    assert {theirs: our_name(theirs) for theirs in pairs.values()} == {b: a for a, b in pairs.items()}
    with pytest.raises(StError, match="no name in this format"):
        makers_name("blocks.0.norm1")
    with pytest.raises(StError, match="no layer of Wan"):
        our_name("double_blocks.0.img_attn.qkv")


def test_keys_are_those_that_other_programs_look_for(make_family: Any) -> None:
    family = make_family()
    denoiser = family.load_denoiser(torch.device("cpu"), torch.float32)
    portable = trained(family, denoiser).portable(denoiser)

    files = {name: form.to_file(*portable)[0] for name, form in family.adapter_formats().items()}

    assert "transformer.blocks.0.attn1.to_q.lora_A.weight" in files["diffusers"]
    assert {"diffusion_model.blocks.0.self_attn.q.lora_A.weight", "diffusion_model.blocks.0.self_attn.q.alpha"} < set(
        files["comfyui"]
    )
    assert {"lora_unet_blocks_2_cross_attn_o.lora_up.weight", "lora_unet_blocks_2_cross_attn_o.alpha"} < set(
        files["musubi"]
    )
    assert [float(value) for key, value in files["musubi"].items() if key.endswith("alpha")] == [8.0] * 24


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("flavour", ["t2v-1.3b", "i2v-480p"])
def test_the_pipeline_loads_the_file_and_predicts_as_we_do(
    make_family: Any, make_upstream: Any, sample: Any, tmp_path: Path, flavour: str, layout: str
) -> None:
    family = make_family(flavour, targets="attention+ffn")
    denoiser = awake_denoiser(family)
    adapter = trained(family, denoiser, format=layout)
    batch, noised = sample(family)
    upstream = make_upstream(flavour, transformer=awake_denoiser(family)).pipeline
    before = family.predict(upstream.transformer, noised, batch)

    upstream.load_lora_weights(str(adapter.export(family, denoiser, tmp_path, {})))

    with torch.no_grad():
        expected = family.predict(denoiser, noised, batch)
        loaded = family.predict(upstream.transformer, noised, batch)
    torch.testing.assert_close(loaded, expected, rtol=1e-5, atol=1e-5)
    assert float((loaded - before).abs().max()) > 1e-2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_experts_file_loads_into_its_expert(
    make_family: Any, make_upstream: Any, sample: Any, tmp_path: Path, layout: str
) -> None:
    family = make_family("t2v-a14b", targets="attention+ffn")
    denoiser = awake_denoiser(family)
    trained(family, denoiser, format=layout).export(family, denoiser, tmp_path, {})
    batch, noised = sample(family, (0.95, 0.2))
    expected = family.predict(denoiser, noised, batch).detach()
    notes: list[str] = []
    run = SimpleNamespace(
        directory=tmp_path,
        ranks=SimpleNamespace(main=True),
        report=SimpleNamespace(note=lambda text, kind: notes.append(text)),
    )

    family.st_run_end(run=run, outcome=Outcome.FAILED)
    assert [file.name for file in tmp_path.iterdir()] == ["adapter.safetensors"]
    family.st_run_end(run=run, outcome=Outcome.FINISHED)

    names = ["adapter-high-noise.safetensors", "adapter-low-noise.safetensors"]
    assert sorted(file.name for file in tmp_path.iterdir()) == [*names, "adapter.safetensors"]
    assert all(name in notes[0] for name in names)
    fresh = awake_denoiser(family)
    pipeline = make_upstream("t2v-a14b", transformer=fresh.high_noise, transformer_2=fresh.low_noise).pipeline
    pipeline.load_lora_weights(str(tmp_path / names[0]))
    pipeline.load_lora_weights(str(tmp_path / names[1]), load_into_transformer_2=True)
    with torch.no_grad():
        torch.testing.assert_close(family.predict(fresh, noised, batch), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_file_of_both_experts_comes_back_and_one_of_neither_is_refused(make_family: Any, layout: str) -> None:
    family, alone = make_family("i2v-a14b"), make_family("i2v-a14b", experts="low")
    denoiser = family.load_denoiser(torch.device("cpu"), torch.float32)
    state, shape = trained(family, denoiser).portable(denoiser)
    both = family.adapter_formats()[layout]

    file, header = both.to_file(state, shape)
    back, back_shape = both.from_file(file, header)

    assert {key.partition(".")[0] for key in file} == {"transformer", "transformer_2"}
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)
    assert back_shape == shape
    part = alone.adapter_formats()[layout].to_file(*single(state))
    with pytest.raises(StError, match="an adapter of one expert"):
        both.from_file(*part)
    with pytest.raises(UnknownTensors, match="of neither transformer nor transformer_2"):
        both.from_file({"unet.x.lora_A.weight": torch.zeros(1)}, header)


def single(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Any]:
    own = {name.removeprefix("low_noise."): one for name, one in state.items() if name.startswith("low_noise.")}
    return own, shape_of(own, {})


def test_training_goes_on_from_a_file_of_both_and_not_from_a_part(
    make_family: Any, sample: Any, tmp_path: Path
) -> None:
    family = make_family("t2v-a14b")
    denoiser, fresh = awake_denoiser(family), awake_denoiser(family)
    written = trained(family, denoiser).export(family, denoiser, tmp_path, {})
    batch, noised = sample(family, (0.95, 0.2))
    (_, part) = write_parts(written, {"transformer": "high-noise", "transformer_2": "low-noise"})

    LoraAdapter(LoraOptions(start=str(written))).attach(fresh, family.adapter_targets(), family.adapter_formats())

    assert torch.equal(family.predict(fresh, noised, batch), family.predict(denoiser, noised, batch))
    with pytest.raises(StError, match=r"this is an adapter of one expert"):
        LoraAdapter(LoraOptions(start=str(part))).attach(
            awake_denoiser(family), family.adapter_targets(), family.adapter_formats()
        )


def test_one_expert_is_written_as_upstream_reads_either(make_family: Any, tmp_path: Path) -> None:
    family = make_family("t2v-a14b", experts="low")
    denoiser = family.load_denoiser(torch.device("cpu"), torch.float32)

    written = trained(family, denoiser).export(family, denoiser, tmp_path, {"about": "low noise"})

    tensors, header = read_adapter_file(written)
    assert {key.partition(".")[0] for key in tensors} == {"transformer"}
    assert header["about"] == "low noise"
    with safe_open(written, framework="pt") as file:
        assert json.loads(file.metadata()[METADATA])["transformer.lora_alpha"] == 4
    assert load_file(written).keys() == tensors.keys()


def test_modules_are_listed_under_their_experts(make_family: Any) -> None:
    paths = make_family("t2v-a14b").module_paths()

    assert "high_noise.blocks.0.attn1.to_q" in paths and "low_noise.proj_out" in paths
    assert "blocks.2.ffn.net.2" in make_family().module_paths()


def test_a_state_is_named_as_the_denoiser_knows_it(make_family: Any) -> None:
    family = make_family("t2v-a14b")
    denoiser = family.load_denoiser(torch.device("cpu"), torch.float32)
    state: dict[str, Tensor] = dict(trained(family, denoiser).state(denoiser))

    assert len(state) == 2 * 2 * 3 * 8
    assert all(key.startswith(("high_noise.blocks.", "low_noise.blocks.")) for key in state)


NORMS = {
    "attn1.norm_q": "self_attn.norm_q",
    "attn1.norm_k": "self_attn.norm_k",
    "attn2.norm_q": "cross_attn.norm_q",
    "attn2.norm_k": "cross_attn.norm_k",
    "attn2.norm_added_k": "cross_attn.norm_k_img",
    "norm2": "norm3",
}


def in_makers_names(name: str) -> str:
    """A weight's name in a file of the makers, as their model has it."""
    path, _, kind = name.rpartition(".")
    block = re.fullmatch(r"((?:vace_)?blocks\.\d+)\.?(.*)", path)
    if kind == "scale_shift_table":
        return f"{path}.modulation" if block else "head.modulation"
    if block and block[2] in NORMS:
        return f"{block[1]}.{NORMS[block[2]]}.{kind}"
    if path.endswith(("image_embedder.norm1", "image_embedder.norm2")):
        return f"img_emb.proj.{0 if path.endswith('1') else 4}.{kind}"
    return f"{makers_name(path)}.{kind}"


@pytest.mark.parametrize("flavour", ["t2v-1.3b", "i2v-480p", "vace-1.3b"])
def test_a_denoisers_file_of_its_makers_loads(make_family: Any, tmp_path: Path, flavour: str) -> None:
    cpu, file = torch.device("cpu"), tmp_path / "wan.safetensors"
    state = awake_denoiser(make_family(flavour)).state_dict()
    save_file({in_makers_names(name): tensor.contiguous() for name, tensor in state.items()}, file)

    loaded = make_family(flavour, denoiser=str(file)).load_denoiser(cpu, torch.float32).state_dict()

    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
