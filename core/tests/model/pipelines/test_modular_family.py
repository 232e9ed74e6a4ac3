"""A family that is a modular pipeline only: its captions, previews and checkpoints are the pipeline's own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
import torch
from torch import Tensor, nn

from st import Batch, Geometry, ModularFamily, Noised, PipelineOptions, Shot, StError
from st.data.encoder import Input
from st.model.pipelines.tiny_kit import autoencoder, clip, same_weights, t5

CPU = torch.device("cpu")
WIDTH = 32


class Blocks(ModularFamily[PipelineOptions]):
    """Stable Diffusion 3 as its modular pipeline has it."""

    pipeline = "StableDiffusion3ModularPipeline"
    encodes = ("prompt_embeds", "pooled_prompt_embeds")

    def prompt_arguments(self) -> Mapping[str, Any]:
        return {"max_sequence_length": 20}

    def tokens(self, latents: Tensor) -> int:
        return latents.shape[-1] * latents.shape[-2] // 4

    def predict(self, denoiser: nn.Module, noised: Noised, batch: Batch) -> Tensor:
        raise NotImplementedError

    def adapter_targets(self) -> Sequence[str]:
        return ("attn.to_q",)

    @classmethod
    def tiny(cls, directory: Path) -> Self:
        import diffusers

        build: Any = diffusers
        with same_weights():
            first, second, third = clip(8, projected=True), clip(8, projected=True), t5(WIDTH)
            pipeline = build.modular_pipelines.StableDiffusion3AutoBlocks().init_pipeline()
            pipeline.update_components(
                text_encoder=first[0],
                tokenizer=first[1],
                text_encoder_2=second[0],
                tokenizer_2=second[1],
                text_encoder_3=third[0],
                tokenizer_3=third[1],
                transformer=build.SD3Transformer2DModel(
                    sample_size=8,
                    patch_size=2,
                    in_channels=4,
                    out_channels=4,
                    num_layers=2,
                    attention_head_dim=8,
                    num_attention_heads=2,
                    joint_attention_dim=WIDTH,
                    caption_projection_dim=16,
                    pooled_projection_dim=16,
                    pos_embed_max_size=32,
                ),
                vae=autoencoder(latent_channels=4, scaling_factor=1.5, shift_factor=0.06),
                scheduler=build.FlowMatchEulerDiscreteScheduler(shift=3.0),
            )
        pipeline.save_pretrained(str(directory), overwrite_modular_index=True)
        return cls(PipelineOptions(checkpoint=str(directory), text_precision="fp32"))


class Listed(Blocks):
    """The same without an index."""

    parts: ClassVar = {
        "text_encoder": "CLIPTextModelWithProjection",
        "tokenizer": "CLIPTokenizer",
        "text_encoder_2": "CLIPTextModelWithProjection",
        "tokenizer_2": "CLIPTokenizer",
        "text_encoder_3": "T5EncoderModel",
        "tokenizer_3": "T5Tokenizer",
        "transformer": "SD3Transformer2DModel",
        "vae": "AutoencoderKL",
        "scheduler": "FlowMatchEulerDiscreteScheduler",
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("modular")
    Blocks.tiny(made)
    return made


def opened(folder: Path, kind: type[Blocks] = Blocks) -> Blocks:
    return kind(PipelineOptions(checkpoint=str(folder), text_precision="fp32"))


def conditions(family: Blocks, *texts: str) -> list[Mapping[str, Tensor]]:
    (encoder,) = family.text_encoders()
    with encoder.open(CPU) as encode:
        return encode([Input(text, caption=text) for text in texts])


def upstream(folder: Path) -> Any:
    """The pipeline as its users load it."""
    from diffusers import StableDiffusion3ModularPipeline

    pipeline: Any = StableDiffusion3ModularPipeline.from_pretrained(str(folder))
    pipeline.load_components(dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def picture_of(pipeline: Any, guidance: float) -> Tensor:
    pipeline.guider = pipeline.guider.new(guidance_scale=guidance)
    pixels: Tensor = pipeline(
        prompt="a cat",
        negative_prompt="grey and blurred",
        height=32,
        width=48,
        num_inference_steps=3,
        max_sequence_length=20,
        generator=torch.Generator().manual_seed(5),
        output_type="pt",
        output="images",
    )
    return pixels


@pytest.mark.parametrize("kind", [Blocks, Listed])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_preview_is_the_modular_pipelines_picture(folder: Path, kind: type[Blocks], guidance: float) -> None:
    family, told = opened(folder, kind), list[int]()
    wanted, against = (family.collate(conditions(family, text)) for text in ("a cat", "grey and blurred"))
    shot = Shot(wanted, against if guidance > 1 else None, Geometry(32, 48), 5, 3, guidance, told.append)

    picture = family.render(family.load_denoiser(CPU, torch.float32), shot)

    assert torch.equal(picture, picture_of(upstream(folder), guidance))
    assert told == [1, 2, 3]


def test_captions_are_encoded_as_the_block_does(folder: Path) -> None:
    family = opened(folder)
    entries = conditions(family, "a red square", "blue")

    block = upstream(folder).blocks.sub_blocks["text_encoder"].init_pipeline()
    parts = upstream(folder)
    block.update_components(**{name: getattr(parts, name) for name in Listed.parts if name.startswith(("tok", "text"))})
    expected = block(prompt=["a red square", "blue"], max_sequence_length=20, output=list(Blocks.encodes))
    for row, entry in enumerate(entries):
        assert all(torch.equal(entry[name], expected[name][row]) for name in Blocks.encodes)


def test_a_trained_model_is_one_that_the_pipeline_loads(folder: Path, tmp_path: Path) -> None:
    family = opened(folder)
    denoiser = family.load_denoiser(CPU, torch.float32)
    with torch.no_grad():
        next(denoiser.parameters()).add_(1)

    family.save_checkpoint(denoiser, tmp_path / "trained")

    users = upstream(tmp_path / "trained")
    assert all(torch.equal(a, b) for a, b in zip(denoiser.parameters(), users.transformer.parameters(), strict=True))
    assert conditions(opened(tmp_path / "trained"), "a")


def test_a_checkpoint_of_another_family_is_refused(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "modular_model_index.json"
    index = json.loads((folder / other.name).read_text())
    index["transformer"][1] = "FluxTransformer2DModel"
    other.write_text(json.dumps(index))

    with pytest.raises(StError, match="is not a model of this family"):
        opened(tmp_path).text_encoders()


def test_the_modules_are_known_without_weights(folder: Path) -> None:
    assert "transformer_blocks.1.attn.to_q" in opened(folder).module_paths()


@pytest.mark.parametrize("kind", [Blocks, Listed])
def test_the_codec_is_loaded_with_and_without_an_index(folder: Path, kind: type[Blocks]) -> None:
    codec: Any = opened(folder, kind).codec()

    assert type(codec.load(CPU)).__name__ == "AutoencoderKL"


class OneByOne(Blocks):
    """Asked for one caption at a time."""

    reads_several = False


def test_captions_read_one_at_a_time_are_those_read_together(folder: Path) -> None:
    together, alone = (conditions(opened(folder, kind), "a cat", "two blue dogs") for kind in (Blocks, OneByOne))

    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one["prompt_embeds"], other["prompt_embeds"], rtol=0, atol=1e-5)


class WithoutDecoding(Blocks):
    """With blocks left out."""

    unwanted_blocks = ("decode",)


def test_unwanted_blocks_are_left_out(folder: Path) -> None:
    kept, fewer = (set(opened(folder, kind)._blocks().sub_blocks) for kind in (Blocks, WithoutDecoding))

    assert kept - fewer == {"decode"}
