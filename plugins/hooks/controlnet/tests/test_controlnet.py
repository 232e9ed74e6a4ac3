"""Control networks of Flux and SDXL: what they compute, learn, save and refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxControlPipeline,
    FluxPipeline,
    StableDiffusionXLControlNetPipeline,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from safetensors.torch import load_file

from st import Batch, Geometry, Noised
from st.report.rendering.prompts import PromptOptions, sized, texts
from st.report.rendering.rendering import encode_texts
from st.testing.runs import TinyRun
from st.train.reopening import open_run
from st.train.validation.validation import references_shown

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*", "ignore::FutureWarning:diffusers.*")
FAMILIES = ("flux", "sdxl")
Calls = list[tuple[torch.Tensor, float, torch.Tensor]]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def at_most_noise(run: TinyRun) -> float:
    """The loss of unseen pictures where x tells least: in the quarter of times with most noise."""
    assert run.result.code == 0, run.result.err
    return run.metrics()["eval/unseen/q4"][-1]


@pytest.mark.alone
def test_what_the_control_picture_says_is_learnt(train: Callable[..., TinyRun]) -> None:
    shown, not_shown = (train("flux", name=one, shown=one, steps=150, lr=0.01) for one in ("shown", "grey"))

    assert at_most_noise(shown) < 0.9 * at_most_noise(not_shown)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_resumed_run_writes_the_same_network(
    train: Callable[..., TinyRun], without_last: Callable[[TinyRun], None], family: str
) -> None:
    whole = train(family, steps=4, more="[checkpoint]\nevery = 2")
    written = files(whole.directory / "controlnet")
    without_last(whole)

    again = train(family, steps=4, more="[checkpoint]\nevery = 2", resume=True)

    assert again.result.code == 0, again.result.err
    assert sorted(written) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert files(again.directory / "controlnet") == written


@pytest.mark.parametrize("family", FAMILIES)
def test_the_saved_network_acts_in_upstream_s_pipeline_as_it_was_trained(
    train: Callable[..., TinyRun],
    checkpoints: dict[str, Path],
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
) -> None:
    # Upstream draws the latents of a control picture; ours are the likeliest.
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    done = train(family, steps=3, lr=0.02)
    assert done.result.code == 0, done.result.err
    run, _ = open_run(done.directory)
    shown = pictures / "shown" / "unseen-0.png"
    with Image.open(shown) as picture:
        calls = UPSTREAM[family](checkpoints[family], done.directory / "controlnet", picture.convert("RGB"))

    assert len(calls) == 3
    for x, t, theirs in calls:
        with torch.no_grad():
            ours = asked(run, x, t, shown)
            with run.adapter.disabled(run.denoiser):
                base = asked(run, x, t, shown)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
        assert not torch.allclose(ours, base, atol=1e-3)


def asked(run: Any, x: torch.Tensor, t: float, picture: Path) -> torch.Tensor:
    """Our prediction for the caption "x" and one control picture."""
    shown = references_shown(run)
    assert shown is not None
    (prompt,) = sized(
        [PromptOptions(prompt="x", references=(str(picture),))], [(64, 64)], run.config.validation.defaults()
    )
    geometry = Geometry(64, 64)
    shown.learn([(prompt, geometry)], run.device)
    conditions = run.family.collate([encode_texts(run.family, texts([prompt]), run.device)[prompt.words]])
    size = torch.tensor([[64, 64]])
    sizes = {"original_size": size, "crop": torch.zeros_like(size), "target_size": size}
    batch = Batch(("x",), (0,), "", x, conditions, extras={**sizes, **shown.extras(prompt, geometry, run.device)})
    answer: torch.Tensor = run.ask(Noised(x=x, t=torch.tensor([t]), clean=x, noise=x), batch)
    return answer


def upstream_flux(checkpoint: Path, network: Path, picture: Image.Image) -> Calls:
    """Of each call of the denoiser: latents, time and answer, as ours are."""
    control = FluxControlNetModel.from_pretrained(network)
    pipeline: Any = FluxControlNetPipeline.from_pretrained(checkpoint, controlnet=control)
    calls: list[Any] = []

    def record(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        x, answer = (FluxPipeline._unpack_latents(one, 64, 64, 8) for one in (kwargs["hidden_states"], output[0]))
        calls.append((x, float(kwargs["timestep"][0]), answer))

    pipeline.transformer.register_forward_hook(record, with_kwargs=True)
    size = {"height": 64, "width": 64, "max_sequence_length": 8}
    # Where nothing is said, training tells a distilled model this guidance.
    pipeline("x", control_image=picture, num_inference_steps=3, guidance_scale=1.0, output_type="latent", **size)
    return calls


def upstream_sdxl(checkpoint: Path, network: Path, picture: Image.Image) -> Calls:
    """Of each call of the denoiser: latents, time and answer, as ours are."""
    control = ControlNetModel.from_pretrained(network)
    pipeline: Any = StableDiffusionXLControlNetPipeline.from_pretrained(checkpoint, controlnet=control)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    calls: list[Any] = []

    def record(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        calls.append((args[0], (int(args[1]) + 1) / 1000, output[0]))

    pipeline.unet.register_forward_hook(record, with_kwargs=True)
    pipeline("x", image=picture, height=64, width=64, num_inference_steps=3, guidance_scale=1.0, output_type="latent")
    return calls


UPSTREAM = {"flux": upstream_flux, "sdxl": upstream_sdxl}


def test_a_control_lora_is_what_upstream_s_control_pipeline_loads(
    train: Callable[..., TinyRun],
    without_last: Callable[[TinyRun], None],
    checkpoints: dict[str, Path],
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    more = "[checkpoint]\nevery = 2"
    done = train("flux", kind="control_lora", adapter="rank = 4", steps=4, lr=0.02, more=more)
    assert done.result.code == 0, done.result.err
    written = done.weights()
    without_last(done)
    again = train("flux", kind="control_lora", adapter="rank = 4", steps=4, lr=0.02, more=more, resume=True)
    run, _ = open_run(done.directory)
    pipeline: Any = FluxControlPipeline.from_pretrained(checkpoints["flux"])
    pipeline.load_lora_weights(str(done.directory / "adapter.safetensors"))
    calls: list[Any] = []

    def record(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        calls.append((kwargs["hidden_states"], float(kwargs["timestep"][0]), output[0]))

    pipeline.transformer.register_forward_hook(record, with_kwargs=True)
    shown = pictures / "shown" / "unseen-0.png"
    with Image.open(shown) as picture:
        pipeline(
            "x",
            control_image=picture.convert("RGB"),
            height=64,
            width=64,
            max_sequence_length=8,
            num_inference_steps=2,
            guidance_scale=1.0,
            output_type="latent",
        )

    assert again.weights() == written
    assert pipeline.transformer.config.in_channels == 128
    for hidden, t, answer in calls:
        x, theirs = (FluxPipeline._unpack_latents(one, 64, 64, 8) for one in (hidden[..., :64], answer))
        with torch.no_grad():
            torch.testing.assert_close(asked(run, x, t, shown), theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "kind", "given", "message"),
    [
        ("sdxl", "control_lora", {}, "Sdxl has no control network that other programs load"),
        ("flux", "controlnet", {"model": 'flavour = "kontext"'}, "is shown references already"),
        ("flux", "controlnet", {"model": "fuse_qkv = true"}, "model.fuse_qkv does not go with a control network"),
        ("flux", "controlnet", {"adapter": "layers = [99, 1]"}, "this denoiser has"),
        ("sdxl", "controlnet", {"adapter": "layers = [1]"}, "adapter.layers has no effect here"),
        ("flux", "control_lora", {"adapter": 'format = "kohya"'}, "read by diffusers' pipelines only"),
        ("sdxl", "controlnet", {"adapter": 'start = "nowhere"'}, "is no control network of this model"),
        ("flux", "controlnet", {"more": "[tread]\nfirst = 0\nlast = -2"}, "controlnet reads every token of block"),
    ],
)
def test_what_cannot_be_controlled_is_refused_with_its_reason(
    train: Callable[..., TinyRun], family: str, kind: str, given: dict[str, str], message: str
) -> None:
    done = train(family, kind=kind, **given)

    assert done.result.code != 0
    assert message in done.result.err


def test_a_trained_network_can_be_gone_on_from(train: Callable[..., TinyRun]) -> None:
    first = train("sdxl", name="first")
    second = train("sdxl", name="second", adapter=f'start = "{first.directory}/controlnet"', steps=1, lr=1e-9)

    assert second.result.code == 0, second.result.err
    before, after = (
        load_file(run.directory / "controlnet" / "diffusion_pytorch_model.safetensors") for run in (first, second)
    )
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-6)
