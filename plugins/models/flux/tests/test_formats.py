"""Adapter files: what diffusers reads is what was trained, what ComfyUI and kohya's tools name is in the table."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn

from st import StError
from st.model.adapters.lora import LoraAdapter, LoraOptions
from st.model.adapters.targets import match_modules
from st.model.files.adapter_file import read_adapter_file, write_adapter_file
from st.model.files.formats import AdapterFormat, LoraShape, shape_of
from st.model.files.peft_layout import diffusers_format
from st.model.files.stacking import Update, stack, unstack
from st_flux.flavours import TARGETS
from st_flux.formats import KOHYA, ComfyUI, Unfused
from st_flux.names import TABLE

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")
WIDTH = 3072
"""Of the published models: diffusers reads kohya's single blocks of this width only."""


@pytest.fixture(scope="module")
def published() -> nn.Module:
    """The layers of the published models, without weights."""
    with torch.device("meta"):
        denoiser: nn.Module = FluxTransformer2DModel(guidance_embeds=True)
    return denoiser


def random_state(denoiser: nn.Module, targets: tuple[str, ...], rank: int = 2, dora: bool = False) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {}
    for path in match_modules(denoiser, targets):
        layer: Any = denoiser.get_submodule(path)
        state[f"{path}.lora_A.weight"] = torch.randn(rank, layer.in_features, generator=generator)
        state[f"{path}.lora_B.weight"] = torch.randn(layer.out_features, rank, generator=generator)
        if dora:
            state[f"{path}.lora_magnitude_vector"] = torch.rand(layer.out_features, generator=generator)
    return state


@pytest.fixture(scope="module")
def small() -> nn.Module:
    """As many kinds of layers as the published models have, and few of each."""
    with torch.device("meta"):
        denoiser: nn.Module = FluxTransformer2DModel(
            num_layers=2,
            num_single_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=12,
            pooled_projection_dim=6,
            guidance_embeds=True,
            axes_dims_rope=(2, 2, 4),
        )
    return denoiser


FORMATS: dict[str, AdapterFormat] = {"diffusers": diffusers_format(), "comfyui": ComfyUI(), "kohya": KOHYA}
EVERYTHING = ("*",)


@pytest.mark.parametrize("targets", [*TARGETS.values(), EVERYTHING], ids=[*TARGETS, "everything"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_file_comes_back_as_it_was(published: nn.Module, small: nn.Module, name: str, targets: Any) -> None:
    numbered = any(character.isdigit() and int(character) > 2 for target in targets for character in target)
    state = random_state(published if numbered else small, targets)
    ranks = shape_of(state, {}).ranks
    shape = LoraShape(ranks, dict.fromkeys(ranks, 3.0))

    back, back_shape = FORMATS[name].from_file(*FORMATS[name].to_file(state, shape))

    assert back.keys() == state.keys()
    assert all(torch.allclose(back[key], state[key], rtol=3e-7, atol=0) for key in state)
    assert back_shape == shape


@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("second", FORMATS)
def test_from_one_format_to_another_and_back_is_the_identity(small: nn.Module, first: str, second: str) -> None:
    state = random_state(small, TARGETS["all+ffs"], rank=3)
    tensors, header = FORMATS[first].to_file(state, shape_of(state, {}))

    ours = FORMATS[second].from_file(*FORMATS[second].to_file(*FORMATS[first].from_file(tensors, header)))
    again, again_header = FORMATS[first].to_file(*ours)

    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[key], tensors[key]) for key in tensors)
    assert again_header == header


@pytest.mark.parametrize("name", FORMATS)
def test_dora_comes_back_as_it_was(small: nn.Module, name: str) -> None:
    state = random_state(small, TARGETS["all+ffs"], dora=True)

    back, _ = FORMATS[name].from_file(*FORMATS[name].to_file(state, shape_of(state, {})))

    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_dora_on_a_part_of_a_layer_cannot_be_written_for_kohya(small: nn.Module) -> None:
    state = random_state(small, ("attn.to_q",), dora=True)

    with pytest.raises(StError, match="DoRA on some of the layers that are one in this format"):
        KOHYA.to_file(state, shape_of(state, {}))


def test_an_untrained_adapter_comes_back_as_it_was(small: nn.Module) -> None:
    state = {
        key: tensor if "lora_A" in key else torch.zeros_like(tensor)
        for key, tensor in random_state(small, TARGETS["all+ffs"], rank=3).items()
    }

    back, shape = KOHYA.from_file(*KOHYA.to_file(state, shape_of(state, {})))

    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)
    assert set(shape.ranks.values()) == {3}


def test_updates_of_other_ranks_and_scales_are_stacked_without_a_change() -> None:
    parts = [
        Update(torch.randn(2, 6), torch.randn(4, 2), 2.0),
        None,
        Update(torch.randn(5, 6), torch.randn(4, 5), 20.0),
        Update(torch.randn(1, 6), torch.randn(16, 1), 1.0),
    ]
    shares = (1, 1, 1, 4)

    whole = stack(parts, shares)
    again = unstack(whole, shares)

    expected = torch.cat([torch.zeros(4, 6) if p is None else p.scale * p.up @ p.down for p in parts])
    torch.testing.assert_close(whole.scale * whole.up @ whole.down, expected)
    assert [None if p is None else p.rank for p in again] == [2, None, 5, 1]
    for part, back in zip(parts, again, strict=True):
        if part is not None and back is not None:
            torch.testing.assert_close(back.scale * back.up @ back.down, part.scale * part.up @ part.down)


def test_one_down_for_all_parts_is_read() -> None:
    dense = Update(torch.randn(4, 6), torch.randn(12, 4), 2.0)

    parts = [part for part in unstack(dense, (1, 1, 1)) if part is not None]

    assert all(torch.equal(part.down, dense.down) and part.alpha == 2.0 for part in parts)
    assert torch.equal(torch.cat([part.up for part in parts]), dense.up)


def test_fused_projections_come_back_as_they_were(small: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    path = "transformer_blocks.1.attn.to_qkv"
    state = {
        f"{path}.lora_A.weight": torch.randn(2, 16, generator=generator),
        f"{path}.lora_B.weight": torch.randn(48, 2, generator=generator),
    }

    for inner in FORMATS.values():
        fused = Unfused(inner)
        tensors, header = fused.to_file(state, LoraShape({path: 2}, {path: 5.0}))
        back, shape = fused.from_file(tensors, header)

        assert torch.equal(back[f"{path}.lora_A.weight"], state[f"{path}.lora_A.weight"])
        torch.testing.assert_close(back[f"{path}.lora_B.weight"], state[f"{path}.lora_B.weight"], rtol=3e-7, atol=0)
        assert shape == LoraShape({path: 2}, {path: 5.0})


def test_diffusers_reads_kohyas_files_as_they_were_meant(published: nn.Module, tmp_path: Path) -> None:
    targets = ("transformer_blocks.3.*", "single_transformer_blocks.7.*")
    state = random_state(published, targets)
    ranks = shape_of(state, {}).ranks
    file = tmp_path / "a.safetensors"
    write_adapter_file(file, *KOHYA.to_file(state, LoraShape(ranks, dict.fromkeys(ranks, 4.0))))

    theirs = FluxPipeline.lora_state_dict(str(file))

    assert theirs.keys() == {f"transformer.{key}" for key in state}
    for path in ranks:
        down, up = (theirs[f"transformer.{path}.lora_{side}.weight"] for side in "AB")
        expected = 2 * (state[f"{path}.lora_B.weight"][:8] @ state[f"{path}.lora_A.weight"])
        torch.testing.assert_close(up[:8] @ down, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", FORMATS)
def test_a_trained_adapter_gives_the_pipeline_the_same_answers(
    family: Any, make_upstream: Any, sample: Any, tmp_path: Path, name: str
) -> None:
    # The single blocks of kohya's files are read at the published width only: the test above.
    targets = ("transformer_blocks.*.attn.*", "transformer_blocks.*.ff*") if name == "kohya" else TARGETS["all+ffs"]
    batch, noised = sample(family)
    denoiser = family.load_denoiser(CPU, torch.float32)
    adapter = LoraAdapter(LoraOptions(rank=3, alpha=2.0, targets=targets, format=name))
    generator = torch.Generator().manual_seed(1)
    for group in adapter.attach(denoiser, ()):
        for parameter in group["params"]:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    upstream = make_upstream()

    with torch.no_grad():
        before = family.predict(upstream.pipeline.transformer, noised, batch)
        upstream.pipeline.load_lora_weights(str(adapter.export(family, denoiser, tmp_path, {})))
        loaded = family.predict(upstream.pipeline.transformer, noised, batch)
        expected = family.predict(denoiser, noised, batch)

    torch.testing.assert_close(loaded, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(loaded, before, atol=1e-2)


def comfyui_table(num_double: int, num_single: int) -> set[str]:
    """What ComfyUI calls the layers of Flux in adapter files of diffusers' naming, as its key map is built."""
    double = (
        "attn.to_q attn.to_k attn.to_v attn.add_q_proj attn.add_k_proj attn.add_v_proj attn.to_out.0 attn.to_add_out"
    )
    double += " norm1.linear norm1_context.linear ff.net.0.proj ff.net.2 ff_context.net.0.proj ff_context.net.2"
    single = "attn.to_q attn.to_k attn.to_v proj_mlp proj_out norm.linear"
    whole = "proj_out norm_out.linear x_embedder context_embedder"
    whole += "".join(
        f" time_text_embed.{kind}_embedder.linear_{n}" for kind in ("timestep", "text", "guidance") for n in (1, 2)
    )
    found = {f"transformer_blocks.{i}.{one}" for i in range(num_double) for one in double.split()}
    found |= {f"single_transformer_blocks.{i}.{one}" for i in range(num_single) for one in single.split()}
    return {f"transformer.{one}" for one in found | set(whole.split())}


def makers_table(num_double: int, num_single: int) -> set[str]:
    """The layers of the published weights that have a matrix, which kohya's tools and ComfyUI name with underscores."""
    double = [
        f"{side}_{one}" for side in ("img", "txt") for one in ("attn.qkv", "attn.proj", "mlp.0", "mlp.2", "mod.lin")
    ]
    found = {f"double_blocks.{i}.{one}" for i in range(num_double) for one in double}
    found |= {f"single_blocks.{i}.{one}" for i in range(num_single) for one in ("linear1", "linear2", "modulation.lin")}
    inputs = {f"{one}_in.{side}_layer" for one in ("time", "vector", "guidance") for side in ("in", "out")}
    return found | inputs | {"img_in", "txt_in", "final_layer.linear", "final_layer.adaLN_modulation.1"}


def test_every_key_is_one_that_comfyui_knows(published: nn.Module) -> None:
    paths = match_modules(published, EVERYTHING)
    state = {f"{path}.lora_{side}.weight": torch.zeros(1, 1) for path in paths for side in "AB"}

    tensors, _ = ComfyUI().to_file(state, shape_of(state, {}))

    stems = {re.sub(r"\.(lora_[AB]\.weight|alpha)$", "", key) for key in tensors}
    assert stems == comfyui_table(19, 38)
    assert all(f"{stem}.alpha" in tensors and f"{stem}.lora_A.weight" in tensors for stem in stems)


def test_every_key_is_one_that_kohyas_tools_know(published: nn.Module) -> None:
    paths = match_modules(published, EVERYTHING)

    found = TABLE.layers(paths)

    assert {layer.theirs for layer in found} == makers_table(19, 38)
    assert sorted(path for layer in found for path in layer.ours) == sorted(paths)


def test_files_that_name_the_makers_layers_are_read(small: nn.Module) -> None:
    state = random_state(small, TARGETS["all"])
    kohya, _ = KOHYA.to_file(state, shape_of(state, {}))
    paths = {path.theirs.replace(".", "_"): path.theirs for path in TABLE.layers(state)}
    dotted = {}
    for key, tensor in kohya.items():
        stem, _, part = key.removeprefix("lora_unet_").partition(".")
        dotted[f"diffusion_model.{paths[stem]}.{part}"] = tensor

    back, _ = ComfyUI().from_file(dotted, {})

    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_a_file_of_another_family_is_refused() -> None:
    tensors = {
        "lora_unet_input_blocks_4_1_proj_in.lora_down.weight": torch.zeros(2, 4),
        "lora_unet_input_blocks_4_1_proj_in.lora_up.weight": torch.zeros(4, 2),
    }

    with pytest.raises(StError, match="2 of 2 tensors belong nowhere, such as 'lora_unet_input_blocks_4"):
        KOHYA.from_file(tensors, {})


@pytest.mark.parametrize("fuse_qkv", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("name", FORMATS)
def test_training_goes_on_exactly_from_a_file_of_each_layout(
    make_family: Any, sample: Any, tmp_path: Path, name: str, fuse_qkv: bool
) -> None:
    family = make_family(fuse_qkv=fuse_qkv)
    batch, noised = sample(family)
    trained, fresh = (family.load_denoiser(CPU, torch.float32) for _ in range(2))
    file = filled(family, trained, tmp_path, name)

    again = LoraAdapter(LoraOptions(start=str(file)))
    again.attach(fresh, family.adapter_targets(), family.adapter_formats())

    with torch.no_grad():
        expected, actual = (family.predict(one, noised, batch) for one in (trained, fresh))
    assert torch.equal(actual, expected)
    assert "other layers" not in again.note


def filled(family: Any, denoiser: nn.Module, where: Path, name: str) -> Path:
    """The file of an adapter with random weights."""
    adapter = LoraAdapter(LoraOptions(rank=4, alpha=2.0, format=name))
    generator = torch.Generator().manual_seed(1)
    for group in adapter.attach(denoiser, family.adapter_targets()):
        for parameter in group["params"]:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return adapter.export(family, denoiser, where, {})


def test_every_layout_is_written_and_says_the_same(family: Any, tmp_path: Path) -> None:
    denoiser = family.load_denoiser(CPU, torch.float32)
    adapter = LoraAdapter(LoraOptions(rank=2, format=("kohya", "diffusers", "comfyui")))
    adapter.attach(denoiser, family.adapter_targets())

    path = adapter.export(family, denoiser, tmp_path, {"st_steps": "1"})

    names = {"kohya": path.name, **{name: f"adapter-{name}.safetensors" for name in ("diffusers", "comfyui")}}
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(names.values())
    assert path.name == "adapter.safetensors"
    states = [family.adapter_formats()[name].from_file(*opened(tmp_path / file))[0] for name, file in names.items()]
    assert all(state.keys() == states[0].keys() for state in states)
    assert all(torch.equal(state[key], states[0][key]) for state in states for key in state)


def opened(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors, metadata = read_adapter_file(file)
    assert metadata["st_steps"] == "1"
    return tensors, metadata


def test_a_file_of_another_model_names_what_does_not_fit(family: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    names = ("lora_unet_input_blocks_4_1_proj_in.lora_down.weight", "lora_unet_input_blocks_4_1_proj_in.lora_up.weight")
    write_adapter_file(file, {name: torch.zeros(2, 2) for name in names}, {})

    with pytest.raises(StError, match="2 of 2 tensors belong nowhere, such as 'lora_unet_input_blocks_4_1_proj_in"):
        start_from(file, family)


def test_a_file_of_a_larger_model_says_which_shape_was_expected(
    family: Any, published: nn.Module, tmp_path: Path
) -> None:
    file = tmp_path / "a.safetensors"
    state = random_state(published, ("transformer_blocks.0.ff.net.2",))
    write_adapter_file(file, *KOHYA.to_file(state, shape_of(state, {})))

    with pytest.raises(
        StError, match=r"'transformer_blocks.0.ff.net.2.lora_A.weight' has shape \(2, 12288\), expected"
    ):
        start_from(file, family)


def start_from(file: Path, family: Any) -> None:
    denoiser = family.load_denoiser(CPU, torch.float32)
    LoraAdapter(LoraOptions(start=str(file))).attach(denoiser, family.adapter_targets(), family.adapter_formats())
