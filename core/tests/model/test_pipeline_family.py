from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
import torch
from torch import Tensor, nn

from st import BlockGroup, StError, TokenStream
from st.data.encoder import Input
from st.data.geometry import Geometry
from st.diffusion.objective import Batch, Noised
from st.model.blocks import BlockStack
from st.model.full import FullAdapter, FullOptions
from st.model.lora import LoraAdapter, LoraOptions
from st.model.pipeline_codec import PipelineCodec
from st.model.pipeline_family import PipelineFamily, PipelineOptions
from st.model.pipeline_text import PipelineText, Prompting
from st.model.recompute import Recompute, RecomputeOptions
from st.report.rendering import RendersPictures

CPU = torch.device("cpu")
SIZE = Geometry(height=32, width=48)
# A guard of diffusers warns where the safety checker, the image encoder or a tokenizer is left out, as it is here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")


class Third(PipelineFamily["Third.Options"]):
    """A joint transformer with two CLIP encoders, as its users write it."""

    class Options(PipelineOptions):
        text_precision: str = "fp32"  # type: ignore[assignment]
        """Exact comparison needs it."""

    pipeline = "StableDiffusion3Pipeline"
    encodes = ("prompt_embeds", None, "pooled_prompt_embeds", None)

    def tokens(self, latents: Tensor) -> int:
        return latents.shape[-1] * latents.shape[-2] // 4

    def predict(self, denoiser: nn.Module, noised: Noised, batch: Batch) -> Tensor:
        prediction: Tensor = denoiser(
            hidden_states=noised.x,
            timestep=noised.t * 1000,
            encoder_hidden_states=batch.conditions["prompt_embeds"],
            pooled_projections=batch.conditions["pooled_prompt_embeds"],
            return_dict=False,
        )[0]
        return prediction

    def prompt_arguments(self) -> Mapping[str, Any]:
        return {"max_sequence_length": 20}

    def adapter_targets(self) -> Sequence[str]:
        return "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"

    def blocks(self) -> Sequence[BlockGroup]:
        return (BlockGroup("transformer_blocks", TokenStream(returned=1)),)

    @classmethod
    def tiny(cls, directory: Path) -> Self:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            tiny_pipeline().save_pretrained(directory)
        return cls(cls.Options(checkpoint=str(directory)))


def tiny_pipeline() -> Any:
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

    characters = [chr(code) for code in range(33, 127)]
    words = [*characters, *(f"{one}</w>" for one in characters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=24, pad_token="<|endoftext|>")
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24,
        projection_dim=8,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
    )
    return StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=16,
            caption_projection_dim=16,
            pooled_projection_dim=16,
            pos_embed_max_size=32,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
            latent_channels=4,
            norm_num_groups=4,
            layers_per_block=1,
            scaling_factor=1.5305,
            shift_factor=0.0609,
        ),
        text_encoder=CLIPTextModelWithProjection(config),
        tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, written once."""
    path = tmp_path_factory.mktemp("third")
    Third.tiny(path)
    return path


@pytest.fixture
def family(folder: Path) -> Third:
    """The family on it."""
    return Third(Third.Options(checkpoint=str(folder)))


@pytest.fixture(scope="module")
def upstream(folder: Path) -> Any:
    """The pipeline, loaded once."""
    return users_pipeline(folder)


def users_pipeline(folder: Path) -> Any:
    """The pipeline as its users load it."""
    from diffusers import StableDiffusion3Pipeline

    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def conditions(family: Third, *texts: str) -> list[Mapping[str, Tensor]]:
    (encoder,) = family.text_encoders()
    with encoder.open(CPU) as encode:
        return encode([Input(key=text, caption=text) for text in texts])


def ask(upstream: Any, texts: Sequence[str]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        asked: tuple[Tensor, ...] = upstream.encode_prompt(
            list(texts), None, None, do_classifier_free_guidance=False, max_sequence_length=20
        )
    return asked


def test_captions_are_encoded_as_the_pipeline_does(family: Third, upstream: Any) -> None:
    texts = ["a red square", "blue"]

    entries = conditions(family, *texts)

    embeds, _, pooled, _ = ask(upstream, texts)
    for row, entry in enumerate(entries):
        assert torch.equal(entry["prompt_embeds"], embeds[row])
        assert torch.equal(entry["pooled_prompt_embeds"], pooled[row])


def test_tokens_that_are_cut_off_are_counted(family: Third) -> None:
    (encoder,) = family.text_encoders()

    assert encoder.count_tokens("abc") == (5, 5)
    assert encoder.count_tokens("x" * 30) == (32, 20)


def test_what_a_family_does_not_say_is_as_the_pipelines_call_has_it(family: Third) -> None:
    class Upstream:
        def __call__(self, prompt: str, max_sequence_length: int = 512) -> None: ...
        def encode_prompt(self, prompt: str, second: str, max_sequence_length: int = 226) -> None: ...

    asked = PipelineText(family.folder, Prompting(Upstream, (), ("text",), {}, {}), "fp32")

    assert asked.fingerprint.endswith('{"second": null, "max_sequence_length": 512}]')


def test_padding_is_not_kept_and_its_mask_comes_back(family: Third) -> None:
    class Masked(Third):
        encodes = ("prompt_embeds", "prompt_attention_mask")
        trims: ClassVar = {"prompt_embeds": "prompt_attention_mask"}

    masked = Masked(family.options)
    (encoder,) = masked.text_encoders()
    assert isinstance(encoder, PipelineText)
    padded = {"prompt_embeds": torch.rand(2, 4, 3), "prompt_attention_mask": torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])}

    entries = [encoder._row(padded, row) for row in range(2)]
    batch = masked.collate(entries)

    assert [{name: tuple(one.shape) for name, one in entry.items()} for entry in entries] == [
        {"prompt_embeds": (2, 3)},
        {"prompt_embeds": (4, 3)},
    ]
    again = masked._conditions(batch, "negative_")
    assert torch.equal(again["negative_prompt_attention_mask"], padded["prompt_attention_mask"])
    assert masked._conditions(masked.collate(entries[:1]), "")["prompt_attention_mask"].tolist() == [[1, 1]]


def test_latents_are_normalised_as_the_pipeline_expects_and_decoded_back(family: Third, upstream: Any) -> None:
    pixels = torch.rand(3, 32, 48)

    with family.codec().open(CPU) as encode:
        (entry,) = encode([Input(key="a", geometry=SIZE, pixels=pixels)])
    with family.codec().decoder(CPU) as decode:
        decoded = decode(entry["latents"][None])

    with torch.no_grad():
        z = upstream.vae.encode(pixels[None] * 2 - 1).latent_dist.mode()
        expected = (upstream.vae.decode(z).sample / 2 + 0.5).clamp(0, 1)
    assert torch.equal(entry["latents"], ((z - 0.0609) * 1.5305)[0])
    assert decoded.shape == (1, 3, 32, 48)
    # The inverse of a scale in float32 is one rounding off.
    torch.testing.assert_close(decoded, expected, rtol=0, atol=1e-5)


def test_a_sample_of_the_latents_depends_on_the_picture_alone(folder: Path) -> None:
    family = Third(Third.Options(checkpoint=str(folder), latents="sample"))
    mode = Third(Third.Options(checkpoint=str(folder)))
    first, second = torch.rand(2, 3, 16, 16)

    def encode(family: Third, *pictures: Tensor) -> list[Tensor]:
        with family.codec().open(CPU) as encode:
            given = [Input(key=str(torch.rand(())), geometry=None, pixels=one) for one in pictures]
            return [entry["latents"] for entry in encode(given)]

    alone, together = encode(family, first), encode(family, second, first)

    # A convolution over two pictures adds in another order than over one.
    torch.testing.assert_close(alone[0], together[1], rtol=0, atol=1e-5)
    assert not torch.allclose(alone[0], encode(mode, first)[0], atol=1e-3)
    assert family.codec().fingerprint != mode.codec().fingerprint


def test_statistics_per_channel_are_applied_to_clips(family: Third) -> None:
    class Statistics(nn.Module):
        config: ClassVar = {"latents_mean": [1.0, 2.0], "latents_std": [2.0, 4.0]}

    class Clips(PipelineCodec):
        takes_frames = True

    codec = Clips(family.folder, "vae", "fp32")
    z = torch.randn(1, 2, 3, 4, 4)

    latents = codec.normalise(Statistics(), z)

    assert torch.equal(latents[:, 1], (z[:, 1] - 2) / 4)
    torch.testing.assert_close(codec.denormalise(Statistics(), latents), z)
    assert codec._clip(torch.zeros(3, 8, 8)).shape == (3, 1, 8, 8)


def test_the_prediction_is_the_transformers(family: Third, upstream: Any) -> None:
    entries = conditions(family, "a", "bb")
    latents = torch.randn(2, 4, 16, 24)
    t = torch.tensor([0.25, 0.75])
    batch = Batch(("a", "b"), (0, 1), "", latents, family.collate(entries))
    noised = Noised(x=latents, t=t, clean=latents, noise=latents)
    denoiser = family.load_denoiser(CPU, torch.float32)

    with torch.no_grad():
        prediction = family.predict(denoiser, noised, batch)
        expected = upstream.transformer(
            latents, batch.conditions["prompt_embeds"], batch.conditions["pooled_prompt_embeds"], t * 1000
        ).sample

    assert torch.equal(prediction, expected)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_preview_is_the_pipelines_picture(family: Third, upstream: Any, guidance: float) -> None:
    denoiser = family.load_denoiser(CPU, torch.float32)
    prompt, negative = (family.collate(conditions(family, text)) for text in ("a cat", "blurry"))
    assert isinstance(family, RendersPictures)

    for _ in range(2):
        picture = family.render(
            denoiser, prompt, negative if guidance > 1 else None, SIZE, seed=5, steps=3, guidance=guidance
        )

    expected = upstream(
        "a cat",
        negative_prompt="blurry",
        height=32,
        width=48,
        num_inference_steps=3,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(5),
        max_sequence_length=20,
        output_type="pt",
    ).images
    assert picture.shape == (1, 3, 32, 48)
    assert torch.equal(picture, expected)


def test_rendering_leaves_no_denoiser_behind(family: Third) -> None:
    denoiser = family.load_denoiser(CPU, torch.float32)
    (prompt,) = conditions(family, "a")

    family.render(denoiser, family.collate([prompt]), None, SIZE, seed=1, steps=1, guidance=1.0)

    assert family._renderer.transformer is None


def test_a_trained_adapter_gives_the_pipeline_the_same_picture(family: Third, folder: Path, tmp_path: Path) -> None:
    denoiser, adapter = family.load_denoiser(CPU, torch.float32), LoraAdapter(LoraOptions(rank=2, alpha=5))
    groups = adapter.attach(denoiser, family.adapter_targets())
    with torch.no_grad():
        for parameter in groups[0]["params"]:
            parameter.normal_(std=0.3)
    prompt = family.collate(conditions(family, "a cat"))
    picture = family.render(denoiser, prompt, None, SIZE, seed=5, steps=2, guidance=1.0)

    file = adapter.export(family, denoiser, tmp_path, {})
    users = users_pipeline(folder)
    users.load_lora_weights(file)
    expected = users(
        height=32,
        width=48,
        num_inference_steps=2,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(5),
        output_type="pt",
        **prompt,
    ).images

    assert torch.equal(picture, expected)


def test_the_file_is_the_one_that_the_pipeline_writes(family: Third, tmp_path: Path) -> None:
    from diffusers import StableDiffusion3Pipeline
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    denoiser, adapter = family.load_denoiser(CPU, torch.float32), LoraAdapter(LoraOptions(rank=2))
    adapter.attach(denoiser, family.adapter_targets())

    ours = load_file(adapter.export(family, denoiser, tmp_path, {}))
    StableDiffusion3Pipeline.save_lora_weights(
        tmp_path, transformer_lora_layers=get_peft_model_state_dict(denoiser), weight_name="theirs.safetensors"
    )

    theirs = load_file(tmp_path / "theirs.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_trained_model_is_a_checkpoint_of_the_family(family: Third, tmp_path: Path) -> None:
    denoiser, adapter = family.load_denoiser(CPU, torch.float32), FullAdapter(FullOptions())
    adapter.attach(denoiser, ())
    with torch.no_grad():
        next(denoiser.parameters()).add_(1)

    written = adapter.export(family, denoiser, tmp_path, {})
    again = Third(Third.Options(checkpoint=str(written))).load_denoiser(CPU, torch.float32)
    users = users_pipeline(written)

    for loaded in (again, users.transformer):
        assert all(torch.equal(a, b) for a, b in zip(denoiser.parameters(), loaded.parameters(), strict=True))
    assert conditions(Third(Third.Options(checkpoint=str(written))), "a")


def test_recompute_reaches_the_declared_blocks(family: Third) -> None:
    denoiser = family.load_denoiser(CPU, torch.float32).train()
    latents = torch.randn(1, 4, 16, 24)
    batch = Batch(("a",), (0,), "", latents, family.collate(conditions(family, "a")))
    noised = Noised(x=latents, t=torch.tensor([0.5]), clean=latents, noise=latents)

    def gradients() -> list[Tensor]:
        denoiser.zero_grad()
        family.predict(denoiser, noised, batch).square().mean().backward()
        return [parameter.grad.clone() for parameter in denoiser.parameters() if parameter.grad is not None]

    expected = gradients()
    with BlockStack(denoiser, family.blocks(), [Recompute(RecomputeOptions(every=1))]):
        actual = gradients()

    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_module_paths_need_no_weights(family: Third) -> None:
    assert "transformer_blocks.2.attn.to_q" in family.module_paths()


def _rewrite(folder: Path, **changes: Any) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | changes))


def _change_a_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["encoder.conv_in.bias"][0] += 1e-3
    save_file(tensors, path, {"format": "pt"})


def test_a_fingerprint_follows_the_weights_and_not_the_place(family: Third, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    copied = Third(Third.Options(checkpoint=str(tmp_path / "copy")))
    before = copied.codec().fingerprint, copied.text_encoders()[0].fingerprint

    _change_a_weight(tmp_path / "copy")

    assert before == (family.codec().fingerprint, family.text_encoders()[0].fingerprint)
    assert copied.codec().fingerprint != before[0]
    assert copied.text_encoders()[0].fingerprint == before[1]


def _no_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def _other_family(folder: Path) -> None:
    _rewrite(folder, _class_name="FluxPipeline", transformer=["diffusers", "FluxTransformer2DModel"])


def _no_denoiser(folder: Path) -> None:
    shutil.rmtree(folder / "transformer")


def _pickled(folder: Path) -> None:
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_no_index, "is no checkpoint of diffusers\n  there is no 'model_index.json' in it"),
        (_other_family, "is not a model of this family\n  it holds a FluxPipeline with FluxTransformer2DModel"),
        (_no_denoiser, "has no 'transformer'\n"),
        (_pickled, "has no 'transformer' in safetensors"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_explained(
    folder: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    damage(copy)

    with pytest.raises(StError) as raised:
        Third(Third.Options(checkpoint=str(copy))).load_denoiser(CPU, torch.float32)

    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("location", "message"),
    [("no/such/folder", "there is no such folder"), ("./missing", "there is no such folder")],
)
def test_a_folder_that_is_not_there_is_said(location: str, message: str) -> None:
    with pytest.raises(StError, match=message):
        Third(Third.Options(checkpoint=location)).codec()


def test_a_repository_that_cannot_be_reached_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))

    with pytest.raises(StError, match="is not on this machine, and the hub does not answer") as raised:
        Third(Third.Options(checkpoint="owner/name")).codec()

    assert raised.value.fix == "go online and repeat, or: hf download owner/name"
