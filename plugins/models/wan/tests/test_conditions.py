"""What a denoiser is given of a clip is, bit for bit, what the upstream pipelines prepare."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from st import Geometry
from st.data.encoder import Input
from st.testing.examples import encoded, example_inputs
from st_wan import Wan
from st_wan.conditions import STRIDE, control_channels, control_mask, first_frame_mask

CPU = torch.device("cpu")
CLIP = Geometry(32, 64, 9)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")


def entry(family: Wan) -> tuple[Any, Any]:
    """The codec's entry of a clip, and the clip, (1, 3, F, H, W) in [-1, 1]."""
    codec = family.codec()
    inputs = example_inputs(codec, CLIP)[:1]
    assert inputs[0].pixels is not None
    return encoded(codec, inputs, CPU)[0], inputs[0].pixels[None] * 2 - 1


@pytest.mark.parametrize("flavour", ["t2v-1.3b", "ti2v-5b"])
def test_latents_are_the_autoencoders_normalised(make_family: Any, make_upstream: Any, flavour: str) -> None:
    given, clip = entry(make_family(flavour))
    vae = make_upstream(flavour).pipeline.vae

    with torch.no_grad():
        z = vae.encode(clip).latent_dist.mode()
    mean, std = (torch.tensor(vae.config[name]).view(1, -1, 1, 1, 1) for name in ("latents_mean", "latents_std"))
    scale = vae.config.scale_factor_spatial

    assert given["latents"].shape == (vae.config.z_dim, 3, 32 // scale, 64 // scale)
    torch.testing.assert_close(given["latents"][None], (z - mean) / std, rtol=1e-6, atol=1e-6)
    assert given.keys() == {"latents"}
    assert make_family(flavour).codec().latent_shape(CLIP) == given["latents"].shape


@pytest.mark.parametrize("flavour", ["i2v-480p", "i2v-a14b"])
def test_the_first_frame_and_its_mask_are_the_pipelines(make_family: Any, make_upstream: Any, flavour: str) -> None:
    given, clip = entry(make_family(flavour))
    pipeline = make_upstream(flavour).pipeline

    with torch.no_grad():
        noise, expected = pipeline.prepare_latents(clip[:, :, 0], 1, 16, 32, 64, 9, torch.float32, CPU)
    ours = torch.cat([first_frame_mask(noise), given["first_frame"][None]], dim=1)

    assert expected.shape == (1, 4 + 16, 3, 4, 8)
    assert torch.equal(ours, expected)
    assert expected[:, :4].sum(dim=(3, 4)).tolist() == [[[32.0, 0.0, 0.0]] * 4]


def test_the_first_frame_of_token_times_is_the_pipelines(make_family: Any, make_upstream: Any) -> None:
    import diffusers

    given, clip = entry(make_family("ti2v-5b", first_frame=0.5))
    parts = {name: part for name, part in make_upstream("ti2v-5b").pipeline.components.items() if part is not None}
    pipeline = diffusers.WanImageToVideoPipeline(**parts, expand_timesteps=True)

    with torch.no_grad():
        _, expected, mask = pipeline.prepare_latents(clip[:, :, 0], 1, 48, 32, 64, 9, torch.float32, CPU)

    assert torch.equal(given["first_frame"][None], expected)
    assert mask[0, 0, :, 0, 0].tolist() == [0, 1, 1]
    torch.testing.assert_close(given["first_frame"], given["latents"][:, :1], rtol=0, atol=1e-5)


def test_what_is_seen_in_the_first_frame_is_the_pipelines(make_family: Any, make_upstream: Any) -> None:
    from PIL import Image

    family = make_family("i2v-480p")
    (eye,) = [one for one in family.text_encoders() if one.reads == ("pixels",)]
    inputs = example_inputs(family.codec(), CLIP)
    pictures = [one.pixels[:, 0].permute(1, 2, 0) for one in inputs if one.pixels is not None]
    images = [Image.fromarray((picture * 255).round().byte().numpy()) for picture in pictures]

    ours = encoded(eye, inputs, CPU)

    with torch.no_grad():
        expected = make_upstream("i2v-480p").pipeline.encode_image(images, CPU)
    assert torch.equal(torch.stack([one["image_embeds"] for one in ours]), expected)
    assert not torch.equal(expected[0], expected[1])


@pytest.mark.parametrize("starts", [False, True])
def test_control_channels_are_the_pipelines(make_family: Any, make_upstream: Any, starts: bool) -> None:
    given, clip = entry(make_family("vace-1.3b", first_frame=float(starts)))
    pipeline = make_upstream("vace-1.3b").pipeline
    video, mask = torch.zeros_like(clip), torch.ones_like(clip)
    if starts:
        video[:, :, 0], mask[:, :, 0] = clip[:, :, 0], 0

    with torch.no_grad():
        latents = pipeline.prepare_video_latents(video, mask, [[]], None, CPU)
        expected = torch.cat([latents, pipeline.prepare_masks(mask, [[]])], dim=1)

    assert expected.shape == (1, 96, 3, 4, 8)
    assert torch.equal(control_channels(given["control"][None], starts), expected)


def test_a_control_clip_is_given_as_the_pipeline_gives_it(make_family: Any, make_upstream: Any) -> None:
    family = make_family("vace-1.3b")
    read = family.references()
    clip, still = (one.pixels for one in example_inputs(family.codec(), CLIP))
    assert read is not None and read.encoder is not None and clip is not None and still is not None
    pipeline = make_upstream("vace-1.3b").pipeline

    with read.encoder.open(CPU) as encode:
        moving, standing = encode([Input("a", CLIP, pixels=clip), Input("b", CLIP, pixels=still[:, 0])])

    for entry, video in ((moving, clip), (standing, still[:, :1].expand(-1, 9, -1, -1))):
        with torch.no_grad():
            expected = pipeline.prepare_video_latents(video[None] * 2 - 1, torch.ones(1, 3, 9, 32, 64), [[]], None, CPU)
        assert torch.equal(entry["control"][None], expected)


def test_any_mask_becomes_the_pipelines_channels(make_upstream: Any) -> None:
    mask = torch.rand(1, 1, 9, 32, 64).round()

    expected = make_upstream("vace-1.3b").pipeline.prepare_masks(mask.expand(-1, 3, -1, -1, -1), [[]])

    assert torch.equal(control_mask(mask), expected)
    assert control_mask(mask).shape[2] == -(-9 // STRIDE)


@pytest.mark.parametrize("caption", ["", "a  red &amp; blue\tsquare", "b" * 700])
def test_captions_are_kept_without_padding_and_asked_with_it(
    make_family: Any, make_upstream: Any, caption: str
) -> None:
    family = make_family()
    (text,) = family.text_encoders()
    with text.open(CPU) as encode:
        (kept,) = encode([Input(caption, caption=caption)])

    with torch.no_grad():
        expected, _ = make_upstream().pipeline.encode_prompt(
            caption, do_classifier_free_guidance=False, max_sequence_length=512
        )
    assert torch.equal(family.collate([kept])["prompt_embeds"], expected)
    assert len(kept["prompt_embeds"]) == min(text.count_tokens(" ".join(caption.replace("&amp;", "&").split()))[0], 512)


def test_entries_of_another_condition_are_others(make_family: Any) -> None:
    codecs = [make_family("ti2v-5b", first_frame=share).codec() for share in (None, 0.5, 1.0)]

    assert codecs[0].fingerprint != codecs[1].fingerprint == codecs[2].fingerprint
