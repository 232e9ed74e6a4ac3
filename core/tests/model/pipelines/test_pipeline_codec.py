"""The autoencoder of a pipeline: statistics, samples and the way back."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from st.data.encoder import Input
from st.data.geometry import Geometry
from st.model.pipelines.pipeline_codec import PipelineCodec

CPU = torch.device("cpu")
SIZE = Geometry(height=32, width=48)
# A guard of diffusers warns where the safety checker, the image encoder or a tokenizer is left out, as it is here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")


def test_latents_are_normalised_as_the_pipeline_expects_and_decoded_back(family: Any, pipelines: Any) -> None:
    pixels = torch.rand(3, 32, 48)

    with family.codec().open(CPU) as encode:
        (entry,) = encode([Input(key="a", geometry=SIZE, pixels=pixels)])
    with family.codec().decoder(CPU) as decode:
        decoded = decode(entry["latents"][None])

    with torch.no_grad():
        z = pipelines.upstream.vae.encode(pixels[None] * 2 - 1).latent_dist.mode()
        expected = (pipelines.upstream.vae.decode(z).sample / 2 + 0.5).clamp(0, 1)
    assert torch.equal(entry["latents"], ((z - 0.0609) * 1.5305)[0])
    assert decoded.shape == (1, 3, 32, 48)
    # The inverse of a scale in float32 is one rounding off.
    torch.testing.assert_close(decoded, expected, rtol=0, atol=1e-5)


def test_a_sample_of_the_latents_depends_on_the_picture_alone(pipelines: Any) -> None:
    family = pipelines.family(pipelines.folder, latents="sample")
    mode = pipelines.family()
    first, second = torch.rand(2, 3, 16, 16)

    def encode(family: Any, *pictures: Tensor) -> list[Tensor]:
        with family.codec().open(CPU) as encode:
            given = [Input(key=str(torch.rand(())), geometry=None, pixels=one) for one in pictures]
            return [entry["latents"] for entry in encode(given)]

    alone, together = encode(family, first), encode(family, second, first)

    # A convolution over two pictures adds in another order than over one.
    torch.testing.assert_close(alone[0], together[1], rtol=0, atol=1e-5)
    assert not torch.allclose(alone[0], encode(mode, first)[0], atol=1e-3)
    assert family.codec().fingerprint != mode.codec().fingerprint


def test_statistics_per_channel_are_applied_to_clips(family: Any) -> None:
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


def test_what_a_codec_gives_beside_latents_is_in_each_samples_entry(family: Any) -> None:
    class Halved(PipelineCodec):
        def further(self, autoencoder: Any, entered: Tensor) -> dict[str, Tensor]:
            return {"half": entered[:, :, ::2]}

    first, second = torch.rand(2, 3, 32, 48)
    codec, plain = Halved(family.folder, "vae", "fp32"), PipelineCodec(family.folder, "vae", "fp32")

    with codec.open(CPU) as encode, plain.open(CPU) as encode_plain:
        entries = encode([Input("a", SIZE, pixels=first), Input("b", SIZE, pixels=second)])
        (alone,) = encode_plain([Input("b", SIZE, pixels=second)])

    assert [list(entry) for entry in entries] == [["latents", "half"]] * 2
    assert torch.equal(entries[1]["half"], second[:, ::2] * 2 - 1)
    assert list(alone) == ["latents"]
