"""Tiny: a whole checkpoint with random weights, in the layout of the published ones, in a second on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from st.model.pipelines.tiny_kit import autoencoder, same_weights, save_pipeline, t5
from st_wan.flavours import FLAVOURS, Flavour, Name

if TYPE_CHECKING:
    from pathlib import Path

TEXT_WIDTH, SEEN_WIDTH, HEADS, HEAD_WIDTH = 16, 16, 2, 12
BOUNDARIES = {"t2v-a14b": 0.875, "i2v-a14b": 0.9}


def write_tiny(directory: Path, flavour: Name) -> None:
    """Write ``model_index.json`` and every component of a flavour. The same weights each time."""
    import diffusers

    build: Any = diffusers  # not typed
    one = FLAVOURS[flavour]
    with same_weights():
        encoder, tokenizer = t5(TEXT_WIDTH, layers=1, kind="UMT5EncoderModel")
        parts = {"text_encoder": encoder, "tokenizer": tokenizer, "vae": _autoencoder(one)}
        parts["scheduler"] = build.UniPCMultistepScheduler(
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            num_train_timesteps=1000,
            flow_shift=5.0 if one.given == "first" else 3.0,
        )
        parts["transformer"] = _denoiser(one)
        if one.experts:
            parts |= {"transformer_2": _denoiser(one), "boundary_ratio": BOUNDARIES[flavour]}
        if one.given == "first":
            parts["expand_timesteps"] = True
        if one.sees:
            parts |= _eye()
        save_pipeline(one.pipeline, directory, **parts)


def _denoiser(one: Flavour) -> Any:
    import diffusers

    build: Any = diffusers
    channels = 48 if one.given == "first" else 16
    settings: dict[str, Any] = {
        "num_attention_heads": HEADS,
        "attention_head_dim": HEAD_WIDTH,
        "in_channels": 2 * channels + 4 if one.given == "padded" else channels,
        "out_channels": channels,
        "text_dim": TEXT_WIDTH,
        "freq_dim": 32,
        "ffn_dim": 32,
        "num_layers": 3,
        "rope_max_seq_len": 64,
    }
    if one.sees:
        settings |= {"image_dim": SEEN_WIDTH, "added_kv_proj_dim": HEADS * HEAD_WIDTH}
    if one.given == "control":
        return build.WanVACETransformer3DModel(**settings, vace_layers=[0, 2], vace_in_channels=2 * channels + 64)
    return build.WanTransformer3DModel(**settings)


def _autoencoder(one: Flavour) -> Any:
    if one.given != "first":
        return autoencoder("AutoencoderKLWan")
    return autoencoder(
        "AutoencoderKLWan",
        z_dim=48,
        in_channels=12,
        out_channels=12,
        is_residual=True,
        patch_size=2,
        scale_factor_spatial=16,
        latents_mean=[number / 100 - 0.24 for number in range(48)],
        latents_std=[0.5 + number / 100 for number in range(48)],
    )


def _eye() -> dict[str, Any]:
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=SEEN_WIDTH,
        intermediate_size=2 * SEEN_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return {"image_encoder": CLIPVisionModel(config), "image_processor": processor}
