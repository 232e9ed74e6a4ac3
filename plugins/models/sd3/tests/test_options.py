"""What a user can ask for, and what is said of what cannot be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from st import Geometry, StError
from st.testing.examples import encoded, example_inputs
from st.testing.runs import write_photos
from st_sd3 import Sd3, Sd3Options
from st_sd3.flavours import FLAVOURS

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")
RUN = """
plugins = ["sd3"]
output = "out"
steps = 1
[model]
{model}
[[dataset]]
url = "{photos}"
"""


def test_every_flavour_names_a_repository_and_nothing_is_fetched_before_it_is_needed() -> None:
    for name, flavour in FLAVOURS.items():
        family = Sd3(Sd3Options.model_validate({"flavour": name}))

        assert family.options.checkpoint == flavour.repository
        assert list(family.adapter_formats()) == ["diffusers", "comfyui", "kohya"]
        assert family.geometry.max_edge == 16 * flavour.places


def test_a_distilled_flavour_is_said_where_the_plan_is(run_file: Any, st_cli: Any, tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    turbo, large = (
        st_cli("train", run_file(RUN.format(model=f'flavour = "{name}"', photos=photos)), "--dry-run")
        for name in ("3.5-large-turbo", "3.5-large")
    )

    assert "is distilled into a few steps" in " ".join((turbo.out + turbo.err).split())
    assert (turbo.code, large.code) == (0, 0)
    assert "is distilled into" not in large.out + large.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint": "sd3.5_medium.safetensors"}, "name a single file of weights in denoiser"),
        ({"max_tokens": 600}, "less than or equal to 512"),
        ({"skip_strength": 2.0}, "no effect without skip_layers"),
        ({"skip_layers": (24,)}, "3.5-medium has 24 blocks"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Sd3Options(**options)


def test_a_checkpoint_of_another_family_is_refused(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "copy")
    index = json.loads((other / "model_index.json").read_text())
    index |= {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}
    (other / "model_index.json").write_text(json.dumps(index))

    with pytest.raises(StError, match="is not a model of this family") as raised:
        Sd3(Sd3Options(checkpoint=str(other))).codec()

    assert raised.value.why == "it holds a FluxPipeline with FluxTransformer2DModel; StableDiffusion3Pipeline is needed"


def test_without_t5_the_model_is_shown_zeros_in_its_place(make_family: Any) -> None:
    with_t5, without = make_family(), make_family(t5=False)
    inputs = example_inputs(with_t5.codec(), Geometry(64, 64))

    full, short = (encoded(one.text_encoders()[0], inputs, CPU)[0]["prompt_embeds"] for one in (with_t5, without))

    assert full.shape == short.shape == (77 + 48, 48)
    assert torch.equal(short[:77], full[:77])
    assert not short[77:].any() and full[77:].any()


def test_captions_that_are_cut_off_are_counted(make_family: Any) -> None:
    (encoder,) = make_family(max_tokens=120).text_encoders()

    assert encoder.count_tokens("b" * 10) == (12, 12)
    assert encoder.count_tokens("b" * 200) == (202, 120)
