"""Adapter files: what diffusers reads is what was trained; what ComfyUI names is in the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Flux3ModularPipeline, Flux3Transformer2DModel
from torch import Tensor, nn

from st import Batch, Noised, StError
from st.data.encoder import Input
from st.model.adapters.lora import LoraAdapter, LoraOptions
from st.model.adapters.targets import match_modules
from st.model.files.formats import AdapterFormat, LoraShape, shape_of, split_key
from st.model.files.peft_layout import diffusers_format
from st_flux3 import Flux3, Flux3Options
from st_flux3.flavours import TARGETS
from st_flux3.formats import COMFYUI

CPU = torch.device("cpu")
FORMATS: dict[str, AdapterFormat] = {"diffusers": diffusers_format(), "comfyui": COMFYUI}
SIZES: dict[str, Any] = {
    "in_channels": 8,
    "cond_in_channels": 8,
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "axes_dims_rope": (2, 2, 2, 2),
}


@pytest.fixture(scope="module")
def small() -> nn.Module:
    """As many kinds of layers as the published models have, and few of each."""
    with torch.device("meta"):
        made: nn.Module = Flux3Transformer2DModel(**SIZES, flow_map=True)
    return made


def random_state(denoiser: nn.Module, targets: tuple[str, ...]) -> dict[str, Tensor]:
    state = {}
    for path in match_modules(denoiser, targets):
        layer: Any = denoiser.get_submodule(path)
        state[f"{path}.lora_A.weight"] = torch.randn(3, layer.in_features)
        state[f"{path}.lora_B.weight"] = torch.randn(layer.out_features, 3)
    return state


@pytest.mark.parametrize("targets", [*TARGETS.values(), ("*",)], ids=[*TARGETS, "everything"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_file_comes_back_as_it_was(small: nn.Module, name: str, targets: Any) -> None:
    state = random_state(small, targets)
    ranks = shape_of(state, {}).ranks
    shape = LoraShape(ranks, dict.fromkeys(ranks, 2.0))

    back, back_shape = FORMATS[name].from_file(*FORMATS[name].to_file(state, shape))

    assert back.keys() == state.keys()
    assert all(torch.allclose(back[key], state[key], rtol=3e-7, atol=0) for key in state)
    assert back_shape == shape


@pytest.mark.parametrize(("first", "second"), [("diffusers", "comfyui"), ("comfyui", "diffusers")])
def test_from_one_format_to_another_and_back_is_the_identity(small: nn.Module, first: str, second: str) -> None:
    state = random_state(small, TARGETS["all+ffs"])
    tensors, header = FORMATS[first].to_file(state, shape_of(state, {}))

    ours = FORMATS[second].from_file(*FORMATS[second].to_file(*FORMATS[first].from_file(tensors, header)))
    again, again_header = FORMATS[first].to_file(*ours)

    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[key], tensors[key]) for key in tensors)
    assert again_header == header


@pytest.mark.parametrize("name", FORMATS)
def test_a_trained_adapter_gives_the_pipeline_the_same_answers(tmp_path: Path, name: str) -> None:
    family = Flux3.tiny(tmp_path / "tiny")
    denoiser = family.load_denoiser(CPU, torch.float32)
    adapter = LoraAdapter(LoraOptions(rank=3, alpha=2.0, targets=TARGETS["all+ffs"], format=name))
    for group in adapter.attach(denoiser, ()):
        for parameter in group["params"]:
            parameter.data.copy_(torch.randn(parameter.shape) * 0.2)
    (encoder,) = family.text_encoders()
    with encoder.open(CPU) as ask:
        conditions = family.collate(ask([Input(key="a", caption="a red square")]))
    x = torch.randn(1, 16, 4, 6)
    noised = Noised(x=x, t=torch.tensor([0.5]), clean=x, noise=x)
    batch = Batch(("a",), (0,), "a", latents=x, conditions=conditions)
    pipeline = Flux3ModularPipeline.from_pretrained(family.folder.location)
    pipeline.update_components(transformer=family.load_denoiser(CPU, torch.float32))

    with torch.no_grad():
        before = family.predict(pipeline.transformer, noised, batch)
        pipeline.load_lora_weights(str(adapter.export(family, denoiser, tmp_path / "out", {})))
        loaded = family.predict(pipeline.transformer, noised, batch)
        expected = family.predict(denoiser, noised, batch)

    torch.testing.assert_close(loaded, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(loaded, before, atol=1e-2)


def test_every_layer_is_one_of_the_makers(small: nn.Module) -> None:
    state = random_state(small, ("*",))

    named = {split_key(key)[0] for key in COMFYUI.to_file(state, shape_of(state, {}))[0]}  # type: ignore[index]

    inside = ("q_proj", "k_proj", "v_proj", "attn_out", "mlp_in", "mlp_out")
    lists = ("content_mode_blocks.image", "content_mode_blocks.image_cond", "txt_mode_blocks")
    known = {f"{one}.{number}.{layer}" for one in lists for number in range(2) for layer in inside}
    known |= {f"single_blocks.{number}.{layer}" for number in range(3) for layer in inside}
    modes = ("image", "image_cond", "txt")
    known |= {f"{stream}_stream_modulations.{mode}.lin" for stream in ("early", "single") for mode in modes}
    known |= {f"{time}_in.{side}_layer" for time in ("time", "ref_time") for side in ("in", "out")}
    known |= {"emb_in.image", "emb_in.image_cond", "txt_in"}
    known |= {"final_layer.image.linear", "final_layer.image.adaLN_modulation.1"}
    assert named == {f"diffusion_model.{one}" for one in known}


@pytest.mark.alone
@pytest.mark.parametrize(("name", "count"), [("picture", 132), ("joint", 112), ("all", 172), ("all+ffs", 258)])
def test_targets_are_the_layers_that_they_say(name: Any, count: int) -> None:
    with torch.device("meta"):
        denoiser: Any = Flux3Transformer2DModel()

    assert len(match_modules(denoiser, Flux3(Flux3Options(targets=name)).adapter_targets())) == count


@pytest.mark.parametrize(("flavour", "found"), [("klein", "klein-base"), ("klein-base", "klein")])
def test_a_checkpoint_of_another_flavour_is_refused(tmp_path: Path, flavour: Any, found: Any) -> None:
    Flux3.tiny(tmp_path / "tiny", found)

    with pytest.raises(StError, match=f"is not a {flavour}"):
        Flux3(Flux3Options(flavour=flavour, checkpoint=str(tmp_path / "tiny"))).load_denoiser(CPU, torch.float32)


def test_a_checkpoint_of_another_family_is_refused(tmp_path: Path) -> None:
    from st_flux2 import Flux2

    Flux2.tiny(tmp_path / "tiny")

    with pytest.raises(StError, match="is no checkpoint of diffusers"):
        Flux3(Flux3Options(checkpoint=str(tmp_path / "tiny"))).codec()


def test_the_distilled_model_says_what_training_does_and_the_base_says_nothing() -> None:
    assert "klein is distilled into few steps" in Flux3(Flux3Options(flavour="klein")).caveats()[0]
    assert Flux3(Flux3Options()).caveats() == ()


@pytest.mark.alone
def test_a_batch_of_captions_of_other_lengths_gives_the_gradients_of_each_alone(tmp_path: Path) -> None:
    family = Flux3.tiny(tmp_path / "tiny")
    denoiser = family.load_denoiser(CPU, torch.float32)
    (encoder,) = family.text_encoders()
    captions = ("a cat", "a red square " * 6)
    with encoder.open(CPU) as ask:
        entries = ask([Input(key=one, caption=one) for one in captions])
    x, t = torch.randn(2, 16, 4, 4), torch.tensor([0.3, 0.7])

    def gradient(rows: list[int]) -> Tensor:
        denoiser.zero_grad()
        noised = Noised(x=x[rows], t=t[rows], clean=x[rows], noise=x[rows])
        conditions = family.collate([entries[row] for row in rows])
        batch = Batch(tuple("ab"[: len(rows)]), tuple(rows), "a", latents=x[rows], conditions=conditions)
        torch.autograd.backward(family.predict(denoiser, noised, batch).square().sum())
        weight: Any = denoiser.get_submodule("txt_mode_blocks.0.attn.to_k").weight
        return weight.grad.clone()  # type: ignore[no-any-return]

    together, alone = gradient([0, 1]), gradient([0]) + gradient([1])

    assert len(entries[0]["prompt_embeds"]) == 80 < len(entries[1]["prompt_embeds"])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5 * float(alone.abs().max()))
