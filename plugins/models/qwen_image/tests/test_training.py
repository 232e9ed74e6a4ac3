"""A step is that of diffusers' training example, and what a user asks for in vain is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import QwenImagePipeline
from pydantic import ValidationError

from st import Geometry, Shot, StError
from st.model.adapters.lora import LoraAdapter, LoraOptions
from st.model.pipelines.packing import unpack
from st.testing import example_batch, example_noised
from st.testing.runs import write_photos
from st_qwen_image import QwenImage, QwenImageOptions
from st_qwen_image.flavours import FLAVOURS, TARGETS
from st_qwen_image.tiny import write_tiny

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")


def test_a_step_is_that_of_diffusers_training_example(family: QwenImage) -> None:
    """examples/dreambooth/train_dreambooth_lora_qwen_image.py, with weighting_scheme "none"."""
    batch = example_batch(family, Geometry(64, 96))
    noised = example_noised(family, batch)
    denoiser = family.load_denoiser(CPU, torch.float32).train()
    groups = LoraAdapter(LoraOptions(rank=4)).attach(denoiser, family.adapter_targets())
    parameters: list[torch.Tensor] = groups[0]["params"]
    for parameter in parameters:
        parameter.data.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1)

    error = family.predict(denoiser, noised, batch) - family.target(family.path(noised.t)).of(
        noised.clean, noised.noise
    )
    error.square().mean().backward()
    ours = [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]
    denoiser.zero_grad()
    height, width = noised.x.shape[-2:]
    sigmas = noised.t.reshape(-1, 1, 1, 1)
    noisy = (1.0 - sigmas) * noised.clean + sigmas * noised.noise
    answer = denoiser(
        hidden_states=QwenImagePipeline._pack_latents(noisy, len(noisy), 16, height, width),
        encoder_hidden_states=batch.conditions["prompt_embeds"],
        encoder_hidden_states_mask=batch.conditions["prompt_embeds_mask"],
        timestep=noised.t * 1000 / 1000,
        img_shapes=[[(1, height // 2, width // 2)]] * len(noisy),
        return_dict=False,
    )[0]
    wanted = noised.noise - noised.clean
    loss = (unpack(answer, height, width).float() - wanted.float()).pow(2).reshape(len(noisy), -1).mean(1).mean()
    loss.backward()

    torch.testing.assert_close(error.square().mean(), loss, rtol=0, atol=1e-5)
    theirs = [parameter.grad for parameter in parameters if parameter.grad is not None]
    # What the last block makes of the text is asked of nobody: its one layer has no gradient.
    assert len(ours) == len(theirs) == len(parameters) - 2
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


def test_every_name_of_the_options_is_one_of_the_tables() -> None:
    fields = QwenImageOptions.model_json_schema()["properties"]

    assert set(TARGETS) == set(fields["targets"]["enum"])
    assert set(FLAVOURS) == set(fields["flavour"]["enum"])


def test_a_flavour_that_edits_draws_nothing_without_a_reference(tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny", "edit-2509")
    family = QwenImage(QwenImageOptions(flavour="edit-2509", checkpoint=str(tmp_path / "tiny")))

    with pytest.raises(StError, match="draws nothing without a picture to edit"):
        family.render(torch.nn.Linear(1, 1), Shot({}, None, Geometry(64, 64), seed=1, steps=1, guidance=1.0))


def test_a_checkpoint_of_another_pipeline_is_refused(folder: Path) -> None:
    family = QwenImage(QwenImageOptions(flavour="edit", checkpoint=str(folder)))

    with pytest.raises(StError, match="is not of the flavour 'edit'") as raised:
        family.load_denoiser(CPU, torch.float32)

    assert raised.value.fix == "set model.flavour to 'base' or '2512', or name another checkpoint"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"flavour": "edit", "max_tokens": 64}, "max_tokens has no effect: edit reads whole captions"),
        ({"checkpoint": "a.safetensors"}, "checkpoint is a whole model"),
    ],
)
def test_options_that_mean_nothing_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        QwenImageOptions.model_validate(given)


def test_references_for_a_flavour_that_is_shown_none_are_refused(
    run_file: Callable[[str], Path], st_cli: Any, tmp_path: Path
) -> None:
    photos = write_photos(tmp_path / "photos")
    dataset = f'[[dataset]]\nname = "a"\nurl = "{photos}"\nreference_sets = ["b"]\n'
    dataset += f'[[dataset]]\nname = "b"\nrole = "reference"\nurl = "{photos}"\n'

    result = st_cli("train", run_file(f'plugins = ["qwen_image"]\noutput = "out"\nsteps = 1\n{dataset}'), "--dry-run")

    assert result.code == 2
    assert "data set 'a' has references, and this model is shown none." in result.err
