"""What cannot be trained is refused with one message, before anything is encoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from st import StError
from st_sd import Sd
from st_sd.flavours import FLAVOURS
from st_sd.tiny import write_tiny
from st_sdxl import Sdxl

Make = Callable[..., Sd]


@pytest.mark.parametrize(
    ("flavour", "changes", "message"),
    [
        ("2.1", {}, "is a Stable Diffusion 1, and model.flavour is '2.1'"),
        ("1.5", {"addition_embed_type": "text_time"}, "is not a model of this family"),
        ("1.5", {"in_channels": 9}, "takes 9 channels: it fills in or edits pictures"),
    ],
)
def test_a_checkpoint_of_something_else_is_refused(
    make: Make, rewrite: Callable[..., Path], flavour: str, changes: Mapping[str, Any], message: str
) -> None:
    folder = rewrite("unet/config.json", **changes)

    with pytest.raises(StError, match=message):
        make(flavour, checkpoint=str(folder)).check()


def test_a_checkpoint_of_another_family_is_refused(make: Make, tmp_path: Path) -> None:
    Sdxl.tiny(tmp_path / "sdxl")

    with pytest.raises(StError, match="is not a model of this family"):
        make(checkpoint=str(tmp_path / "sdxl")).check()


def test_sdxl_refuses_a_checkpoint_of_this_family(folders: Callable[[str], Path]) -> None:
    with pytest.raises(StError, match="is not a model of this family"):
        Sdxl(Sdxl.Options(checkpoint=str(folders("1.5")))).check()


@pytest.mark.parametrize(
    ("flavour", "says", "message"),
    [
        ("1.5", "v_prediction", "predicts 'v_prediction', and model.prediction is not set"),
        ("2.1", "epsilon", "predicts 'epsilon', and model.prediction is not set"),
    ],
)
def test_another_prediction_than_the_flavours_has_to_be_said(
    make: Make, tmp_path: Path, flavour: str, says: str, message: str
) -> None:
    other = "2.1-base" if flavour == "2.1" else "1.5"
    write_tiny(tmp_path / "other", FLAVOURS[other])
    scheduler = tmp_path / "other" / "scheduler" / "scheduler_config.json"
    scheduler.write_text(scheduler.read_text().replace('"prediction_type": "epsilon"', f'"prediction_type": "{says}"'))

    with pytest.raises(StError, match=message):
        make(flavour, checkpoint=str(tmp_path / "other")).check()

    said = "v" if says == "v_prediction" else "epsilon"
    make(flavour, checkpoint=str(tmp_path / "other"), prediction=said).check()


def test_a_sampler_that_cannot_begin_at_pure_noise_is_refused(make: Make, tmp_path: Path) -> None:
    write_tiny(tmp_path / "other", FLAVOURS["1.5"], scheduler="PNDMScheduler")
    family = make(checkpoint=str(tmp_path / "other"), prediction="v", zero_terminal_snr=True)

    with pytest.raises(StError, match="has a PNDMScheduler, which cannot begin at pure noise"):
        family.check()


def test_a_control_network_and_a_learning_text_encoder_do_not_go_together(make: Make) -> None:
    family = make(train_text=True)
    denoiser = family.load_denoiser(torch.device("cpu"), torch.float32)

    with pytest.raises(StError, match=r"model\.train_text does not go with a control network"):
        family.make_control(denoiser, ())
