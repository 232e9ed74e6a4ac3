"""Unmodified denoisers and a pipeline of diffusers, tiny and with random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn

from st import BlockGroup, TokenStream
from st.data.encoder import Input
from st.diffusion.objective import Batch, Noised
from st.model.pipelines.pipeline_family import PipelineFamily, PipelineOptions

TEXT = 5


@dataclass(frozen=True)
class Case:
    """A denoiser, the arguments of one forward pass, and how its blocks are declared."""

    name: str
    denoiser: nn.Module
    arguments: Mapping[str, Any]
    groups: tuple[BlockGroup, ...]
    tokens: int

    def run(self, denoiser: nn.Module | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The prediction, and the gradient of every weight that has one."""
        denoiser = denoiser or self.denoiser
        denoiser.zero_grad()
        prediction = denoiser(**self.arguments, return_dict=False)[0]
        (prediction.square().mean() + prediction.mean()).backward()
        return prediction.detach(), {n: p.grad.clone() for n, p in denoiser.named_parameters() if p.grad is not None}


def _sd3() -> Case:
    from diffusers import SD3Transformer2DModel

    denoiser = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=4,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=6,
        out_channels=4,
        pos_embed_max_size=8,
    )
    arguments = {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "encoder_hidden_states": torch.randn(2, TEXT, 12),
        "pooled_projections": torch.randn(2, 6),
        "timestep": torch.tensor([100.0, 700.0]),
    }
    return Case("sd3", denoiser, arguments, (BlockGroup("transformer_blocks", TokenStream(returned=1)),), 16)


def _flux() -> Case:
    from diffusers import FluxTransformer2DModel

    denoiser = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=2,
        num_single_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=6,
        axes_dims_rope=(4, 6, 6),
    )
    places = torch.cartesian_prod(torch.arange(1.0), torch.arange(4.0), torch.arange(4.0))
    arguments = {
        "hidden_states": torch.randn(2, 16, 16),
        "encoder_hidden_states": torch.randn(2, TEXT, 12),
        "pooled_projections": torch.randn(2, 6),
        "timestep": torch.tensor([0.1, 0.7]),
        "img_ids": places,
        "txt_ids": torch.zeros(TEXT, 3),
    }

    def keep_image_rows(arguments: Mapping[str, Any], keep: Tensor) -> dict[str, Any]:
        text = arguments["encoder_hidden_states"].shape[1]
        narrowed = tuple(torch.cat([table[:text], table[text:][keep]]) for table in arguments["image_rotary_emb"])
        return {"image_rotary_emb": narrowed}

    image = TokenStream(returned=1, select=keep_image_rows)
    groups = BlockGroup("transformer_blocks", image), BlockGroup("single_transformer_blocks", image)
    return Case("flux", denoiser, arguments, groups, 16)


def _wan() -> Case:
    from diffusers import WanTransformer3DModel

    denoiser = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=12,
        freq_dim=8,
        ffn_dim=32,
        num_layers=4,
        cross_attn_norm=True,
    )
    arguments = {
        "hidden_states": torch.randn(2, 4, 3, 8, 8),
        "timestep": torch.tensor([100.0, 700.0]),
        "encoder_hidden_states": torch.randn(2, TEXT, 12),
    }

    def keep_rows(arguments: Mapping[str, Any], keep: Tensor) -> dict[str, Any]:
        return {"rotary_emb": tuple(table[:, keep] for table in arguments["rotary_emb"])}

    return Case("wan", denoiser, arguments, (BlockGroup("blocks", TokenStream(select=keep_rows)),), 48)


def _shared() -> Case:
    """A single-stream denoiser: text first, then image, in one sequence."""
    from diffusers import AuraFlowTransformer2DModel

    denoiser = AuraFlowTransformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_mmdit_layers=0,
        num_single_dit_layers=4,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        out_channels=4,
        pos_embed_max_size=16,
    )
    arguments = {
        "hidden_states": torch.randn(2, 4, 8, 8),
        "encoder_hidden_states": torch.randn(2, TEXT, 12),
        "timestep": torch.tensor([0.1, 0.7]),
    }

    def count(arguments: Mapping[str, Any]) -> int:
        height, width = arguments["hidden_states"].shape[-2:]
        return int(height // 2 * (width // 2))

    stream = TokenStream(place="last", count=count)
    return Case("shared", denoiser, arguments, (BlockGroup("single_transformer_blocks", stream),), 16)


CASES: dict[str, Callable[[], Case]] = {"sd3": _sd3, "flux": _flux, "wan": _wan, "shared": _shared}


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    """Each kind in turn, in train mode; the same weights and arguments every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = CASES[request.param]()
        with torch.no_grad():
            for parameter in built.denoiser.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
    built.denoiser.train()
    return built


@pytest.fixture
def make_case() -> Callable[[str], Case]:
    """Builds one of the cases by name."""

    def make(name: str) -> Case:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            built = CASES[name]()
        built.denoiser.train()
        return built

    return make


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


def users_pipeline(folder: Path) -> Any:
    """The pipeline as its users load it."""
    from diffusers import StableDiffusion3Pipeline

    pipeline = StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def conditions(family: Third, *texts: str) -> list[Mapping[str, Tensor]]:
    """What the text encoder gives for each text."""
    (encoder,) = family.text_encoders()
    with encoder.open(torch.device("cpu")) as encode:
        return encode([Input(key=text, caption=text) for text in texts])


@dataclass(frozen=True)
class Pipelines:
    """What tests of PipelineFamily share: a checkpoint, written once, and ways to open it."""

    folder: Path
    upstream: Any

    def family(self, folder: Path | None = None, **options: Any) -> Third:
        """The family on a checkpoint."""
        return Third(Third.Options(checkpoint=str(folder or self.folder), **options))

    conditions = staticmethod(conditions)
    load = staticmethod(users_pipeline)


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Pipelines:
    """The tiny checkpoint of Third."""
    folder = tmp_path_factory.mktemp("third")
    Third.tiny(folder)
    return Pipelines(folder, users_pipeline(folder))


@pytest.fixture
def family(pipelines: Pipelines) -> Third:
    """The family on the tiny checkpoint."""
    return pipelines.family()
