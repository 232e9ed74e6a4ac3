"""Whole runs on the tiny checkpoint, through the command line, and what they leave for other programs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from st.testing.runs import TinyRun, write_photos
from st.train.reopening import open_run
from st_flux import Flux

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")
RUN = """
plugins = ["flux"]
output = "{output}"
steps = {steps}
batch = 2
precision = "fp32"
device = "cpu"
[model]
checkpoint = "{checkpoint}"
max_tokens = 40
text_precision = "fp32"
{model}
[adapter]
kind = "lora"
rank = 4
{adapter}
[optimizer]
kind = "adamw"
lr = 0.01
[report]
every = 1
[[dataset]]
url = "{photos}"
resolution = 64
align = 16
{more}
"""


@pytest.fixture
def train(run_file: Any, st_cli: Any, folder: Path, tmp_path: Path) -> Callable[..., TinyRun]:
    """Trains on four pictures."""

    def run(steps: int = 3, model: str = "", adapter: str = "", more: str = "") -> TinyRun:
        output, photos = tmp_path / "out", write_photos(tmp_path / "photos")
        text = RUN.format(
            output=output, steps=steps, checkpoint=folder, photos=photos, model=model, adapter=adapter, more=more
        )
        result = st_cli("train", run_file(text))
        assert result.code == 0, result.err + result.out
        return TinyRun(output, result)

    return run


@pytest.mark.parametrize("name", ["diffusers", "comfyui", "kohya"])
def test_twenty_steps_give_a_file_that_the_pipeline_loads(
    train: Callable[..., TinyRun], make_upstream: Any, sample: Any, name: str
) -> None:
    # Of kohya's files diffusers reads the single blocks at the published width only.
    targets = 'targets = ["transformer_blocks.*.attn.*"]' if name == "kohya" else ""
    done = train(steps=20, adapter=f'format = "{name}"\n{targets}')
    run, _ = open_run(done.directory)
    family, upstream = run.family, make_upstream()
    batch, noised = sample(family)

    with torch.no_grad():
        before = family.predict(upstream.pipeline.transformer, noised, batch)
        upstream.pipeline.load_lora_weights(str(done.directory / "adapter.safetensors"))
        latents, times = upstream.latents(batch.conditions, noised.noise)
        ours, _ = make_upstream(denoiser=run.denoiser).latents(batch.conditions, noised.noise)
        loaded = family.predict(upstream.pipeline.transformer, noised, batch)
        expected = family.predict(run.denoiser, noised, batch)

    assert done.outcome == "finished"
    assert float((latents - ours).abs().max()) < 1e-4
    torch.testing.assert_close(loaded, expected, rtol=0, atol=1e-5)
    assert not torch.allclose(loaded, before, atol=1e-3)
    assert len(times) == 5


def test_a_run_shows_what_it_draws_and_learns_beside_an_assistant(
    train: Callable[..., TinyRun], make_family: Any, tmp_path: Path
) -> None:
    assistant = an_adapter(make_family(), tmp_path / "assistant")
    validation = '[validation]\nevery = 3\nprompts = ["a cat"]\nresolutions = ["64"]\nsteps = 2\nguidance = 3.0\n'

    done = train(
        model=f'assistant = "{assistant}"\nguidance = [1.0, 4.0]\nmask_padding = true\nfuse_qkv = true',
        more=validation,
    )

    notes = [event["text"] for event in done.events() if event.get("kind") == "assistant"]
    assert [note.endswith("beside 10 layers, in training only") for note in notes] == [True]
    assert done.warnings() == []
    assert len(list((done.directory / "samples").rglob("*.png"))) == 2
    assert "transformer.transformer_blocks.0.attn.to_q.lora_A.weight" in load_file(
        done.directory / "adapter.safetensors"
    )


def an_adapter(family: Flux, where: Path) -> Path:
    from st.model.adapters.lora import LoraAdapter, LoraOptions

    denoiser = family.load_denoiser(torch.device("cpu"), torch.float32)
    adapter = LoraAdapter(LoraOptions(rank=2))
    for group in adapter.attach(denoiser, family.adapter_targets()):
        for parameter in group["params"]:
            parameter.data.normal_(std=0.1)
    return adapter.export(family, denoiser, where, {})
