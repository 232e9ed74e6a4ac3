"""What a user can ask for, and what is said of what cannot be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from st import Input, StError
from st.model.adapters.targets import match_modules
from st_lumina2 import Lumina2, Lumina2Options
from st_lumina2.flavours import FLAVOURS, TARGETS

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")


@pytest.mark.parametrize(("name", "count"), [("attention", 104), ("all", 120), ("all+ffs", 210), ("modulation", 238)])
def test_targets_are_the_layers_that_they_say(published: nn.Module, name: Any, count: int) -> None:
    family = Lumina2(Lumina2Options(targets=name))

    paths = match_modules(published, family.adapter_targets())

    assert len(paths) == count
    assert not any(path.startswith(("x_", "time_", "norm_out")) for path in paths)


def test_every_name_of_the_options_is_tried() -> None:
    fields = Lumina2Options.model_json_schema()["properties"]

    assert set(TARGETS) == set(fields["targets"]["enum"])
    assert set(FLAVOURS) == set(fields["flavour"]["enum"])


def test_every_flavour_names_its_parts_and_nothing_is_fetched_before_it_is_needed() -> None:
    for name, flavour in FLAVOURS.items():
        family = Lumina2(Lumina2Options.model_validate({"flavour": name}))

        assert family.options.checkpoint == flavour.repository
        assert family.prompt_arguments()["system_prompt"] == (flavour.system_prompt or None)


def test_a_system_prompt_of_ones_own_comes_first() -> None:
    options = Lumina2Options(flavour="neta-lumina", system_prompt="Draw birds.")

    assert Lumina2(options).prompt_arguments()["system_prompt"] == "Draw birds."


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint": "z.safetensors"}, "name a single file of weights in denoiser"),
        ({"max_tokens": 600}, "less than or equal to 512"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Lumina2Options(**options)


def test_captions_are_counted_with_their_system_prompt(make_family: Callable[..., Lumina2]) -> None:
    (encoder,) = make_family(system_prompt="Draw birds.", max_tokens=60).text_encoders()
    # One token begins the text.
    around = 1 + len("Draw birds. <Prompt Start> ")

    assert encoder.count_tokens("b" * 10) == (around + 10, around + 10)
    assert encoder.count_tokens("b" * 90) == (around + 90, 60)


def test_a_system_prompt_stands_before_captions_only(make_family: Callable[..., Lumina2]) -> None:
    (encoder,) = make_family(system_prompt="Draw birds.").text_encoders()
    asked = [Input("a", caption="a bird", role=role) for role in ("caption", "negative", "dropped")]

    with encoder.open(torch.device("cpu")) as encode:
        read, against, dropped = encode(asked)

    assert len(read["prompt_embeds"]) == 1 + len("Draw birds. <Prompt Start> a bird")
    assert len(against["prompt_embeds"]) == len(dropped["prompt_embeds"]) == 1 + len("a bird")


def test_more_tokens_than_the_model_has_positions_for_are_refused(make_family: Callable[..., Lumina2]) -> None:
    with pytest.raises(StError, match=r"model\.max_tokens = 300 is more than this model has positions for") as raised:
        make_family(max_tokens=300).load_denoiser(torch.device("cpu"), torch.float32)

    assert raised.value.fix == "set model.max_tokens to 299 or less"
    make_family(max_tokens=299).load_denoiser(torch.device("cpu"), torch.float32)


def test_a_checkpoint_of_another_family_is_refused(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "copy"
    shutil.copytree(folder, other)
    index = json.loads((other / "model_index.json").read_text())
    index |= {"_class_name": "ZImagePipeline", "transformer": ["diffusers", "ZImageTransformer2DModel"]}
    (other / "model_index.json").write_text(json.dumps(index))

    with pytest.raises(StError, match="is not a model of this family") as raised:
        Lumina2(Lumina2Options(checkpoint=str(other))).codec()

    assert raised.value.why == "it holds a ZImagePipeline with ZImageTransformer2DModel; Lumina2Pipeline is needed"
