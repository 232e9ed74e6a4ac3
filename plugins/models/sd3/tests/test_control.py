"""Control networks: upstream's pipeline draws with what was trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import SD3ControlNetModel, StableDiffusion3ControlNetPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor

from st import Batch, Geometry, Noised, StError
from st.data.encoder import Input
from st.data.sample import REFERENCE
from st.testing.examples import example_pixels
from st_controlnet.network import ControlNetAdapter
from st_controlnet.options import ControlNetOptions
from st_sd3 import Sd3

CPU = torch.device("cpu")
pytestmark = [pytest.mark.alone, pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")]


def begun(family: Sd3, **options: Any) -> tuple[Any, ControlNetAdapter]:
    denoiser = family.load_denoiser(CPU, torch.float32)
    adapter = ControlNetAdapter(ControlNetOptions(**options))
    adapter.begin(family, denoiser)
    adapter.attach(denoiser, ())
    return denoiser, adapter


def test_a_new_network_changes_nothing_and_leaves_the_denoiser_as_it_was(
    family: Sd3, sample: Callable[[Sd3], tuple[Batch, Noised]]
) -> None:
    batch, noised = sample(family)
    plain = family.load_denoiser(CPU, torch.float32)
    denoiser, adapter = begun(family)
    shown = replace(batch, extras={REFERENCE: torch.randn_like(batch.latents)})

    with torch.no_grad():
        answer, expected = adapter.predict(family, denoiser, noised, shown), family.predict(plain, noised, batch)

    assert torch.equal(answer, expected)
    assert dict(denoiser.config) == dict(plain.config)


@pytest.mark.parametrize("zeros", [False, True], ids=["as ours", "without pooled text"])
def test_what_was_trained_acts_in_upstreams_pipeline_as_it_did(
    zeros: bool,
    family: Sd3,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sample: Callable[[Sd3], tuple[Batch, Noised]],
) -> None:
    # Upstream draws the latents of a control picture; ours are the likeliest.
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    denoiser, adapter = begun(family)
    adapter._network.register_to_config(force_zeros_for_pooled_projection=zeros)
    for _, parameter in sorted(adapter.state(denoiser).items()):
        parameter.data += torch.randn(parameter.shape) * 0.05
    batch, _ = sample(family)
    picture = example_pixels(Geometry(64, 96), 3)
    network = SD3ControlNetModel.from_pretrained(adapter.export(family, denoiser, tmp_path, {}))
    pipeline = StableDiffusion3ControlNetPipeline.from_pretrained(folder, controlnet=network)
    calls: list[tuple[Tensor, Tensor, Tensor]] = []

    def record(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        calls.append((kwargs["hidden_states"], kwargs["timestep"] / 1000, output[0]))

    pipeline.transformer.register_forward_hook(record, with_kwargs=True)
    pipeline(
        "a red square on a table",
        control_image=picture[None] * 2 - 1,  # a tensor is taken as it is
        height=64,
        width=96,
        guidance_scale=1.0,
        num_inference_steps=3,
        max_sequence_length=48,
        output_type="latent",
    )

    with family.codec().open(CPU) as encode:
        (shown,) = encode([Input(key="shown", pixels=picture)])
    one = replace(
        batch,
        conditions={name: value[:1] for name, value in batch.conditions.items()},
        extras={REFERENCE: shown["latents"][None]},
    )
    assert len(calls) == 3
    with torch.no_grad():
        for x, t, theirs in calls:
            told = Noised(x=x, t=t, clean=x, noise=x)
            ours = adapter.predict(family, denoiser, told, one)
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
            assert not torch.allclose(ours, family.predict(denoiser, told, one), atol=1e-3)


def test_more_blocks_than_there_are_cannot_be_copied(family: Sd3) -> None:
    with pytest.raises(StError, match=r"adapter.layers = \[3\]: a control network can have 1 to 2"):
        begun(family, layers=(3,))
