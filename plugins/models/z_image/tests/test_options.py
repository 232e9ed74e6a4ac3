"""What a user can ask for, and what is said of what cannot be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from torch import nn

from st import StError
from st.model.adapters.targets import match_modules
from st.testing.runs import write_photos
from st_z_image import ZImage, ZImageOptions
from st_z_image.flavours import FLAVOURS, TARGETS

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")


@pytest.mark.parametrize(("name", "count"), [("attention", 120), ("all", 136), ("all+ffs", 238), ("modulation", 270)])
def test_targets_are_the_layers_that_they_say(published: nn.Module, name: Any, count: int) -> None:
    family = ZImage(ZImageOptions(targets=name))

    paths = match_modules(published, family.adapter_targets())

    assert len(paths) == count
    assert not any(path.startswith(("all_", "cap_", "t_")) for path in paths)


def test_every_name_of_the_options_is_tried() -> None:
    fields = ZImageOptions.model_json_schema()["properties"]

    assert set(TARGETS) == set(fields["targets"]["enum"])
    assert set(FLAVOURS) == set(fields["flavour"]["enum"])


def test_references_for_a_flavour_that_is_shown_none_are_refused(
    run_file: Callable[[str], Path], st_cli: Any, tmp_path: Path
) -> None:
    photos = write_photos(tmp_path / "photos")
    dataset = f'[[dataset]]\nname = "a"\nurl = "{photos}"\nreference_sets = ["b"]\n'
    dataset += f'[[dataset]]\nname = "b"\nrole = "reference"\nurl = "{photos}"\n'

    result = st_cli("train", run_file(f'plugins = ["z_image"]\noutput = "out"\nsteps = 1\n{dataset}'), "--dry-run")

    assert result.code == 2
    assert "data set 'a' has references, and this model is shown none." in result.err


def test_every_flavour_names_its_parts_and_nothing_is_fetched_before_it_is_needed() -> None:
    for name, flavour in FLAVOURS.items():
        if not flavour.repository:
            continue
        options = ZImage(ZImageOptions.model_validate({"flavour": name})).options

        assert (options.checkpoint, options.denoiser) == (flavour.repository, flavour.denoiser)


def test_a_checkpoint_of_ones_own_keeps_its_own_denoiser(folder: Path) -> None:
    family = ZImage(ZImageOptions(flavour="de-turbo", checkpoint=str(folder)))

    assert family.options.denoiser == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint": "z.safetensors"}, "name a single file of weights in denoiser"),
        ({"max_tokens": 600}, "less than or equal to 512"),
        ({"assistant_strength": 0.5}, "assistant_strength has no effect"),
        ({"flavour": "omni"}, "no weights of flavour omni are published"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ZImageOptions(**options)


def test_captions_are_counted_with_their_template(make_family: Callable[..., ZImage]) -> None:
    (encoder,) = make_family(max_tokens=100).text_encoders()
    # <|im_start|> and <|im_end|> are one token each.
    around = len("<user\n>\n<assistant\n")

    assert encoder.count_tokens("b" * 10) == (around + 10, around + 10)
    assert encoder.count_tokens("b" * 90) == (around + 90, 100)


def test_a_checkpoint_of_another_family_is_refused(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "copy"
    shutil.copytree(folder, other)
    index = json.loads((other / "model_index.json").read_text())
    index |= {"_class_name": "Lumina2Pipeline", "transformer": ["diffusers", "Lumina2Transformer2DModel"]}
    (other / "model_index.json").write_text(json.dumps(index))

    with pytest.raises(StError, match="is not a model of this family") as raised:
        ZImage(ZImageOptions(checkpoint=str(other))).codec()

    assert raised.value.why == "it holds a Lumina2Pipeline with Lumina2Transformer2DModel; ZImagePipeline is needed"


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ('flavour = "turbo"', "Note: turbo is distilled to 8 steps without guidance"),
        ('flavour = "turbo"\nassistant_strength = 0', "without an assistant training undoes that"),
        ('flavour = "base"', ""),
    ],
)
def test_the_plan_says_that_a_model_is_distilled(
    run_file: Callable[[str], Path], st_cli: Any, tmp_path: Path, model: str, said: str
) -> None:
    photos = write_photos(tmp_path / "photos")
    file = run_file(
        f'plugins = ["z_image"]\noutput = "out"\nsteps = 1\n[model]\n{model}\n[[dataset]]\nurl = "{photos}"\n'
    )

    result = st_cli("train", file, "--dry-run")

    assert result.code == 0, result.err
    assert said in " ".join(result.out.split())
    assert ("distilled" in result.out) is bool(said)
