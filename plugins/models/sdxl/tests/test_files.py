"""Adapter files: each format loads where it is meant to, and none loses anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors import safe_open
from torch import Tensor, nn

from st import Geometry, Input, Shot, StError
from st.model.adapters.lora import LoraAdapter, LoraOptions
from st.model.files.adapter_file import write_adapter_file
from st.model.files.formats import LoraShape
from st.testing.runs import call_cli, write_photos
from st_sdxl import Sdxl
from st_sdxl.layers import original_names

# A guard of diffusers warns where the text encoders are left out, as they are here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")
CPU = torch.device("cpu")
SIZE = Geometry(64, 96)
FORMATS = ("diffusers", "kohya", "comfyui")
MOSTLY_ALONE = (FORMATS[0], *(pytest.param(name, marks=pytest.mark.alone) for name in FORMATS[1:]))
Make = Callable[..., Sdxl]

RUN = """
plugins = ["sdxl"]
output = "{output}"
steps = 20
batch = 2
precision = "fp32"
device = "cpu"
[model]
checkpoint = "{checkpoint}"
text_precision = "fp32"
targets = "unet"
{model}
[adapter]
rank = 4
alpha = 6
format = "{format}"
rank_pattern = {{ "attn2.to_k" = 3 }}
[optimizer]
lr = 1e-2
[[dataset]]
url = "{photos}"
resolution = 64
align = 8
caption_dropout = 0.2
"""


@pytest.fixture(scope="module", params=[False, True], ids=["unet", "with text encoders"])
def trained(
    request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Sdxl, str, Path]:
    """A run of twenty steps through the command line: the family, the format that was asked for, and the file."""
    folder = tmp_path_factory.mktemp("trained")
    train_text, format = request.param, "comfyui" if request.param else "kohya"
    places = {"output": folder / "out", "checkpoint": checkpoint, "photos": write_photos(folder / "photos")}
    model = "train_text = true" if train_text else ""
    (folder / "run.toml").write_text(RUN.format(**places, format=format, model=model))
    result = call_cli("train", folder / "run.toml")
    assert result.code == 0, result.err
    options = {"checkpoint": str(checkpoint), "text_precision": "fp32", "targets": "unet", "train_text": train_text}
    return Sdxl(Sdxl.Options.model_validate(options)), format, folder / "out" / "adapter.safetensors"


@pytest.mark.parametrize("format", MOSTLY_ALONE)
def test_a_trained_adapter_gives_the_pipeline_our_picture(
    trained: tuple[Sdxl, str, Path], upstream: Callable[..., Any], tmp_path: Path, format: str
) -> None:
    family, written, file = trained
    formats = family.adapter_formats()
    state, shape = formats[written].from_file(*opened(file))
    denoiser, users = family.load_denoiser(CPU, torch.float32), upstream()
    before = drawn(users)
    if format != written:
        file = tmp_path / "other.safetensors"
        write_adapter_file(file, *formats[format].to_file(state, shape))

    users.load_lora_weights(file)

    filled(denoiser, state, shape)
    picture = rendered(family, denoiser)
    assert not torch.allclose(picture, before, atol=1e-2), "the adapter changed nothing"
    torch.testing.assert_close(drawn(users), picture, rtol=0, atol=1e-4)


def drawn(pipeline: Any) -> Tensor:
    pixels: Tensor = pipeline(
        "a tree", height=64, width=96, num_inference_steps=2, guidance_scale=1.0,
        generator=torch.Generator().manual_seed(5), output_type="pt",
    ).images  # fmt: skip
    return pixels


def rendered(family: Sdxl, denoiser: nn.Module) -> Tensor:
    (encoder,) = family.text_encoders()
    with encoder.open(CPU) as encode:
        entries = encode([Input(key="a tree", caption="a tree")])
    return family.render(denoiser.eval(), Shot(family.collate(entries), None, SIZE, seed=5, steps=2, guidance=1.0))


def filled(denoiser: nn.Module, state: Mapping[str, Tensor], shape: LoraShape) -> None:
    """Attach an adapter of this shape and fill it."""
    patterns = {path: rank for path, rank in shape.ranks.items() if rank != 4}
    adapter = LoraAdapter(LoraOptions(rank=4, alpha=6, targets=tuple(shape.ranks), rank_pattern=patterns))
    adapter.attach(denoiser, ())
    assert shape.alphas == dict.fromkeys(shape.ranks, 6.0)
    adapter.load(denoiser, state)


def opened(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(file, framework="pt") as reader:
        return {key: reader.get_tensor(key) for key in reader.keys()}, dict(reader.metadata())  # noqa: SIM118


def an_adapter(family: Sdxl, use_dora: bool = False) -> tuple[dict[str, Tensor], LoraShape]:
    """One of every kind of layer, with ranks and alphas of their own."""
    denoiser = family.load_denoiser(CPU, torch.float32)
    patterns = {"attn1.to_q": 4, "proj_in": 1}
    adapter = LoraAdapter(LoraOptions(rank=2, alpha=3, use_dora=use_dora, rank_pattern=patterns))
    groups = adapter.attach(denoiser, family.adapter_targets())
    with torch.no_grad():
        for number, parameter in enumerate(groups[0]["params"]):
            parameter.fill_(number)
    return adapter.portable(denoiser)


@pytest.mark.parametrize("train_text", [False, True], ids=["unet", "with text encoders"])
@pytest.mark.parametrize("use_dora", [False, True], ids=["lora", "dora"])
def test_from_one_format_to_another_and_back_is_the_same_file(make: Make, train_text: bool, use_dora: bool) -> None:
    family = make(train_text=train_text, targets="unet")
    formats = family.adapter_formats()
    state, shape = an_adapter(family, use_dora)
    assert tuple(formats) == FORMATS

    for one, other in permutations(FORMATS, 2):
        first = formats[one].to_file(state, shape)
        between = formats[other].to_file(*formats[one].from_file(*first))
        again = formats[one].to_file(*formats[other].from_file(*between))
        assert first[1] == again[1]
        assert first[0].keys() == again[0].keys()
        assert all(torch.equal(first[0][key], again[0][key]) for key in first[0])


def test_both_kinds_of_names_are_read_by_either_format(make: Make) -> None:
    family = make(targets="unet")
    formats, (state, shape) = family.adapter_formats(), an_adapter(family)

    kohya, _ = formats["comfyui"].from_file(*formats["kohya"].to_file(state, shape))
    comfyui, _ = formats["kohya"].from_file(*formats["comfyui"].to_file(state, shape))

    assert kohya.keys() == comfyui.keys() == state.keys()


def real_unet() -> UNet2DConditionModel:
    """The real architecture, without memory."""
    build: Any = UNet2DConditionModel
    with torch.device("meta"):
        unet: UNet2DConditionModel = build(
            sample_size=128,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=(320, 640, 1280),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
    return unet


def test_original_names_are_those_of_the_released_weights() -> None:
    unet = real_unet()
    named = original_names([path for path, _ in unet.named_modules()])
    weights = {name: tensor for name, tensor in unet.state_dict().items()}
    original = {}
    for name, tensor in weights.items():
        path, _, kind = name.rpartition(".")
        original[f"model.diffusion_model.{named[path]}.{kind}"] = tensor

    converted: Mapping[str, Tensor] = convert_ldm_unet_checkpoint(dict(original), unet.config)

    assert len(original) == len(weights) == 1680
    assert converted.keys() == weights.keys()
    assert all(converted[name] is weights[name] for name in weights)


def comfyui_table(unet: nn.Module) -> set[str]:
    """Every name that ComfyUI gives a layer of SDXL in adapter files: by its own weights' names, and by diffusers'."""
    named = original_names([path for path, _ in unet.named_modules()])
    weights = {name.rpartition(".")[0] for name in unet.state_dict()}
    flat = {f"lora_unet_{name.replace('.', '_')}" for path in weights for name in (path, named[path])}
    layers = ("self_attn_q_proj", "self_attn_k_proj", "self_attn_v_proj", "self_attn_out_proj", "mlp_fc1", "mlp_fc2")
    for number, depth in ((1, 12), (2, 32)):
        heads = [f"lora_te{number}_text_model_encoder_layers_{layer}" for layer in range(depth)]
        flat |= {f"{head}_{layer}" for head in heads for layer in layers}
    return flat


@pytest.mark.parametrize("format", ["kohya", "comfyui"])
def test_every_key_is_in_the_table_that_comfyui_derives(make: Make, format: str) -> None:
    family = make(targets="unet", train_text=True)
    state, shape = an_adapter(family)
    unet = real_unet()

    tensors, _ = family.adapter_formats()[format].to_file(state, shape)

    parts = ("lora_down.weight", "lora_up.weight", "alpha")
    assert {key.partition(".")[2] for key in tensors} == set(parts)
    assert {key.partition(".")[0] for key in tensors} <= comfyui_table(unet)


def test_no_two_layers_of_the_real_model_share_a_key() -> None:
    paths = [path for path, module in real_unet().named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    named = original_names([path for path, _ in real_unet().named_modules()])

    assert len({path.replace(".", "_") for path in paths}) == len(paths)
    assert len({named[path].replace(".", "_") for path in paths}) == len(paths)


def test_the_diffusers_file_is_the_one_that_the_pipeline_writes(make: Make, tmp_path: Path) -> None:
    from diffusers import StableDiffusionXLPipeline
    from peft import get_peft_model_state_dict

    family = make()
    denoiser: Any = family.load_denoiser(CPU, torch.float32)
    adapter = LoraAdapter(LoraOptions(rank=2))
    adapter.attach(denoiser, family.adapter_targets())

    ours, _ = opened(adapter.export(family, denoiser, tmp_path, {}))
    layers = get_peft_model_state_dict(denoiser)
    StableDiffusionXLPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers, weight_name="theirs.safetensors")

    theirs, _ = opened(tmp_path / "theirs.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_a_file_of_the_text_encoders_is_refused_where_only_the_unet_learns(make: Make) -> None:
    with_text = make(train_text=True, targets="unet")
    tensors, metadata = with_text.adapter_formats()["kohya"].to_file(*an_adapter(with_text))

    with pytest.raises(Exception, match="belong nowhere, such as 'lora_te1_"):
        make().adapter_formats()["kohya"].from_file(tensors, metadata)


@pytest.mark.parametrize("train_text", [False, True], ids=["unet", "with text encoders"])
@pytest.mark.parametrize("format", MOSTLY_ALONE)
def test_training_goes_on_exactly_from_a_file_of_each_layout(
    make: Make, tmp_path: Path, format: str, train_text: bool
) -> None:
    family = make(train_text=train_text, targets="unet")
    file = tmp_path / "a.safetensors"
    state, shape = an_adapter(family)
    write_adapter_file(file, *family.adapter_formats()[format].to_file(state, shape))

    fresh, again = family.load_denoiser(CPU, torch.float32), LoraAdapter(LoraOptions(start=str(file)))
    again.attach(fresh, family.adapter_targets(), family.adapter_formats())

    found, found_shape = again.portable(fresh)
    assert found_shape == shape
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize("format", FORMATS)
def test_text_encoders_that_nobody_trains_are_not_left_out_in_silence(make: Make, tmp_path: Path, format: str) -> None:
    both, unet = make(train_text=True, targets="unet"), make(targets="unet")
    file = tmp_path / "a.safetensors"
    write_adapter_file(file, *both.adapter_formats()[format].to_file(*an_adapter(both)))

    with pytest.raises(StError, match=r"tensors belong nowhere, such as '(text_encoder|lora_te1)"):
        LoraAdapter(LoraOptions(start=str(file))).attach(
            unet.load_denoiser(CPU, torch.float32), unet.adapter_targets(), unet.adapter_formats()
        )


def test_a_file_of_the_unet_leaves_the_text_encoders_and_says_so(make: Make, tmp_path: Path) -> None:
    both, unet = make(train_text=True, targets="unet"), make(targets="unet")
    file = tmp_path / "a.safetensors"
    write_adapter_file(file, *unet.adapter_formats()["kohya"].to_file(*an_adapter(unet)))

    adapter = LoraAdapter(LoraOptions(start=str(file)))
    adapter.attach(both.load_denoiser(CPU, torch.float32), both.adapter_targets(), both.adapter_formats())

    assert "other layers that this run would train are not in" in adapter.note
