"""What a user can ask for, and what is said of what cannot be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Flux2Transformer2DModel
from pydantic import ValidationError

from st import StError
from st.data.encoder import Input
from st.model.adapters.targets import match_modules
from st.testing.runs import write_photos
from st_flux2 import Flux2, Flux2Options
from st_flux2.flavours import FLAVOURS

CPU = torch.device("cpu")
RUN = """
plugins = ["flux2"]
output = "{output}"
steps = 2
batch = 2
precision = "fp32"
device = "cpu"
[model]
flavour = "{flavour}"
checkpoint = "{checkpoint}"
max_tokens = 40
text_precision = "fp32"
[adapter]
kind = "lora"
rank = 2
[[dataset]]
url = "{photos}"
resolution = 64
align = 16
[validation]
every = 2
steps = 2
resolutions = ["64"]
prompts = ["a cat"]
{more}
"""


@pytest.mark.alone
@pytest.mark.parametrize(
    ("name", "count"), [("mmdit", 128), ("all", 160), ("all+ffs", 192), ("context", 32), ("context+ffs", 48)]
)
def test_targets_are_the_layers_that_they_say(name: Any, count: int) -> None:
    with torch.device("meta"):
        denoiser: Any = Flux2Transformer2DModel()

    paths = match_modules(denoiser, Flux2(Flux2Options(targets=name)).adapter_targets())

    assert len(paths) == count
    assert "proj_out" not in paths


def test_every_flavour_names_a_repository_and_nothing_is_fetched_before_it_is_needed() -> None:
    for name, flavour in FLAVOURS.items():
        family = Flux2(Flux2Options.model_validate({"flavour": name}))

        assert family.options.checkpoint == flavour.repository
        assert family.architecture().name == flavour.architecture


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flavour": "dev", "guidance": (3.0, 1.0)}, "is no range"),
        ({"flavour": "klein-4b", "guidance": 2.0}, "klein-4b is told none"),
        ({"checkpoint": "flux2.safetensors"}, "name a single file of weights in denoiser"),
        ({"max_tokens": 600}, "less than or equal to 512"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Flux2Options(**options)


def test_a_checkpoint_of_another_family_is_refused(folders: Callable[[str], Path], tmp_path: Path) -> None:
    other = shutil.copytree(folders("klein-base-4b"), tmp_path / "copy")
    index = json.loads((other / "model_index.json").read_text())
    index |= {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}
    (other / "model_index.json").write_text(json.dumps(index))

    with pytest.raises(StError, match="is not a model of this family") as raised:
        Flux2(Flux2Options(checkpoint=str(other))).codec()

    assert raised.value.why == "it holds a FluxPipeline with FluxTransformer2DModel; Flux2KleinPipeline is needed"


@pytest.mark.parametrize(
    ("flavour", "found", "why"),
    [
        ("dev", "klein-base-4b", "it reads captions with Qwen3ForCausalLM"),
        ("klein-base-9b", "dev", "it reads captions with Mistral3ForConditionalGeneration"),
        ("klein-4b", "klein-base-4b", "it is not distilled into few steps"),
        ("klein-base-4b", "klein-4b", "it is distilled into few steps"),
    ],
)
def test_a_checkpoint_of_another_flavour_is_refused(
    folders: Callable[[str], Path], flavour: Any, found: str, why: str
) -> None:
    with pytest.raises(StError, match=f"is not a {flavour}") as raised:
        Flux2(Flux2Options(flavour=flavour, checkpoint=str(folders(found)))).codec()

    assert raised.value.why == why
    assert f"'{found}'" in str(raised.value.fix)


def test_a_model_for_filling_is_refused(folders: Callable[[str], Path], tmp_path: Path) -> None:
    other = shutil.copytree(folders("klein-base-4b"), tmp_path / "copy")
    config = json.loads((other / "transformer" / "config.json").read_text())
    wide: Any = Flux2Transformer2DModel.from_config({**config, "in_channels": 32, "out_channels": 16})
    wide.save_pretrained(other / "transformer")

    with pytest.raises(StError, match="is not a model that draws"):
        Flux2(Flux2Options(checkpoint=str(other))).load_denoiser(CPU, torch.float32)


def test_a_processor_that_stands_as_the_tokenizer_reads_captions_as_its_tokenizer(
    make_family: Any, tmp_path: Path
) -> None:
    family = make_family("dev")
    published = shutil.copytree(family.folder.location, tmp_path / "copy")
    index = json.loads((published / "model_index.json").read_text())
    index["tokenizer"] = ["transformers", "PixtralProcessor"]
    (published / "model_index.json").write_text(json.dumps(index))

    embeds = [encoded(one, "a cat") for one in (family, make_family("dev", checkpoint=str(published)))]

    assert torch.equal(*embeds)


def encoded(family: Flux2, caption: str) -> torch.Tensor:
    (encoder,) = family.text_encoders()
    with encoder.open(CPU) as ask:
        return ask([Input(key="a", caption=caption)])[0]["prompt_embeds"]


@pytest.mark.parametrize("flavour", ["klein-base-4b", "dev"])
def test_captions_that_are_cut_off_are_counted_with_their_template(make_family: Any, flavour: str) -> None:
    (encoder,) = make_family(flavour).text_encoders()

    around = encoder.count_tokens("")[0]
    assert 0 < around < 48
    assert encoder.count_tokens("b" * 10) == (around + 10, around + 10)
    assert encoder.count_tokens("b" * 100)[1] == 48


@pytest.mark.parametrize(
    ("flavour", "more", "message"),
    [
        ("klein-4b", 'negative = "blurry"', "validation.negative has no effect"),
        ("dev", 'negative = "blurry"', "validation.negative has no effect"),
    ],
)
def test_what_a_distilled_model_does_not_look_at_is_refused(
    run_file: Any, st_cli: Any, folders: Any, tmp_path: Path, flavour: str, more: str, message: str
) -> None:
    photos = write_photos(tmp_path / "photos")
    text = RUN.format(output=tmp_path / "o", flavour=flavour, checkpoint=folders(flavour), photos=photos, more=more)

    result = st_cli("train", run_file(text), "--dry-run")

    assert result.code == 2
    assert message in result.err


def test_the_plan_says_what_training_a_model_of_few_steps_does(
    run_file: Any, st_cli: Any, folders: Any, tmp_path: Path
) -> None:
    photos = write_photos(tmp_path / "photos")
    text = RUN.format(output=tmp_path / "o", flavour="klein-4b", checkpoint=folders("klein-4b"), photos=photos, more="")

    result = st_cli("train", run_file(text), "--dry-run")

    assert result.code == 0, result.err
    said = " ".join((result.err + result.out).split())
    assert "Note: klein-4b is distilled into few steps" in said
    assert "Note: its previews are drawn without guidance" in said


@pytest.mark.alone
def test_the_whole_model_is_saved_as_the_pipeline_reads_it(make_family: Any, sample: Any, tmp_path: Path) -> None:
    from diffusers import Flux2KleinPipeline

    family = make_family()
    batch, noised = sample(family)
    denoiser = family.load_denoiser(CPU, torch.float32)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.mul_(1.1)
        expected = family.predict(denoiser, noised, batch)

    family.save_checkpoint(denoiser, tmp_path / "saved")

    loaded = Flux2KleinPipeline.from_pretrained(tmp_path / "saved").transformer
    with torch.no_grad():
        assert torch.equal(family.predict(loaded, noised, batch), expected)
