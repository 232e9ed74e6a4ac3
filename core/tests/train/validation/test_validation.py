"""Validation renders what was asked for and leaves training as it was."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from st import Shot
from st.data.sets.words import Words
from st.data.shape.rule import GeometryRule
from st.diffusion.objective import Batch, Noised
from st.diffusion.sampler import euler
from st.report.log.events import read_events
from st.report.rendering.asked import ValidationOptions, prompts_to_encode
from st.report.rendering.rendering import called_within, encode_texts
from st.testing.subjects.tiny import TinyFamily
from st.train.parts.run import Run
from st.train.validation.validation import PromptValidator

OPTIONS = ValidationOptions(
    every=1, prompts=("a cat", "a dog --w 16 --h 32 --d 9"), resolutions=("24",), steps=2, guidance=2.0
)


def validator(run: Run, options: ValidationOptions = OPTIONS, **further: object) -> PromptValidator:
    encodings = encode_texts(run.family, prompts_to_encode(options), run.device)
    return PromptValidator(options, encodings, euler, **further)  # type: ignore[arg-type]


def training_state(run: Run) -> dict[str, object]:
    """Everything that training depends on and validation could disturb, as bytes."""
    state: dict[str, object] = {n: t.numpy().tobytes() for n, t in run.denoiser.state_dict().items()}
    state |= {f"mode of {name}": module.training for name, module in run.denoiser.named_modules()}
    state |= {f"gradient of {n}": p.grad is None for n, p in run.denoiser.named_parameters()}
    state |= {f"learns {n}": p.requires_grad for n, p in run.denoiser.named_parameters()}
    state["torch"] = torch.get_rng_state().numpy().tobytes()
    state["python"] = random.getstate()
    state["numpy"] = numpy.random.get_state()[1].tobytes()
    return state


def warnings(run: Run) -> list[str]:
    events = read_events(run.directory / "events.jsonl")
    return [event["text"] for event in events if event.get("kind") == "warning"]


def test_pictures_are_written_by_step_prompt_and_size(run: Run) -> None:
    run.progress.step = 500

    pictures, _ = validator(run)(run)

    samples = run.directory / "samples"
    assert [(p.path.relative_to(samples).as_posix(), p.label) for p in pictures] == [
        ("base/a-cat-24x24.png", "a-cat 24x24 base"),
        ("base/a-dog-16x32.png", "a-dog 16x32 base"),
        ("step-00000500/a-cat-24x24.png", "a-cat 24x24"),
        ("step-00000500/a-dog-16x32.png", "a-dog 16x32"),
    ]
    with Image.open(pictures[-1].path) as picture:
        assert picture.size == (16, 32)
        assert "Seed: 9" in picture.info["parameters"]
    assert pictures[-1].prompt == "a dog"


def test_training_state_is_byte_equal_after_validation(run: Run) -> None:
    run.denoiser.get_submodule("blocks.0").eval()
    before = training_state(run)

    validator(run)(run)

    assert training_state(run) == before


def test_the_base_is_rendered_once_and_without_the_adapter(run: Run) -> None:
    validate = validator(run)
    first, _ = validate(run)
    second, _ = validate(run)

    base, trained = (path.read_bytes() for path in (first[0].path, first[2].path))
    assert base != trained
    assert [picture.label for picture in second] == ["a-cat 24x24", "a-dog 16x32"]


def test_before_the_first_step_an_adapter_that_changes_nothing_is_not_rendered_beside_the_base(run: Run) -> None:
    run.progress.step = 0

    pictures, _ = validator(run)(run)

    assert run.adapter.begins_as_base
    assert [picture.label for picture in pictures] == ["a-cat 24x24 base", "a-dog 16x32 base"]
    assert sorted(path.name for path in (run.directory / "samples").iterdir()) == ["base"]


def test_a_picture_that_is_asked_for_larger_than_the_model_draws_is_said_once(run: Run) -> None:
    run.family.geometry = GeometryRule(multiple=8, max_pixels=16 * 16)
    validate = validator(run)

    validate(run)
    validate(run)

    said = [line for line in warnings(run) if "more than this model draws" in line]
    assert said == [
        "24x24 is more than this model draws: pictures are rendered at 16x16",
        "16x32 is more than this model draws: pictures are rendered at 16x16",
    ]


def test_the_same_step_renders_the_same_picture(run: Run) -> None:
    validate = validator(run)
    first = [picture.path.read_bytes() for picture in validate(run)[0][2:]]
    torch.manual_seed(77)

    assert [picture.path.read_bytes() for picture in validate(run)[0]] == first


def test_one_failing_prompt_does_not_keep_the_others(run: Run) -> None:
    def predict(noised: Noised, batch: Batch) -> Tensor:
        if "a-cat" in batch.keys:
            raise ValueError("no cats today")
        return run.family.predict(run.denoiser, noised, batch)

    pictures, _ = validator(run, OPTIONS.model_copy(update={"compare_base": False}), predict=predict)(run)

    assert [picture.label for picture in pictures] == ["a-dog 16x32"]
    assert warnings(run) == ["the validation picture 'a-cat 24x24' could not be rendered: ValueError: no cats today"]
    assert run.denoiser.training


def test_running_out_of_memory_is_reported_with_what_helps(run: Run) -> None:
    def predict(noised: Noised, batch: Batch) -> Tensor:
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    pictures, _ = validator(run, OPTIONS.model_copy(update={"compare_base": False}), predict=predict)(run)

    assert pictures == ()
    assert all("lower [validation] resolutions" in text for text in warnings(run))
    assert len(warnings(run)) == 2


def test_a_picture_of_a_step_that_is_redone_is_not_the_old_one(run: Run) -> None:
    validate = validator(run, OPTIONS.model_copy(update={"compare_base": False}))
    old = validate(run)[0][0].path
    validate.predict = broken

    assert validate(run)[0] == ()
    assert not old.exists()


def broken(noised: Noised, batch: Batch) -> Tensor:
    raise RuntimeError("broken")


def test_other_weights_are_in_place_while_rendering_only(run: Run) -> None:
    @contextmanager
    def zeroed() -> Iterator[None]:
        learned = [p for p in run.denoiser.parameters() if p.requires_grad]
        kept = [p.detach().clone() for p in learned]
        for parameter in learned:
            parameter.zero_()
        yield
        for parameter, value in zip(learned, kept, strict=True):
            parameter.copy_(value)

    before = training_state(run)
    pictures, _ = validator(run, weights=zeroed)(run)

    base, averaged = (picture.path.read_bytes() for picture in (pictures[0], pictures[2]))
    assert base == averaged
    assert training_state(run) == before


class Renders(TinyFamily):
    """A family with a pipeline of its own: it paints the seed."""

    def render(self, denoiser: nn.Module, shot: Shot) -> Tensor:
        torch.rand(3), random.random()
        return torch.full((1, 3, shot.geometry.height, shot.geometry.width), shot.seed / 255)


def test_a_family_with_a_pipeline_of_its_own_is_rendered_by_it(run: Run) -> None:
    run = replace(run, family=Renders(run.family.options))
    before = training_state(run)

    pictures, _ = validator(run)(run)

    with Image.open(pictures[-1].path) as picture:
        assert picture.getpixel((0, 0)) == (9, 9, 9)
    assert training_state(run) == before


@pytest.mark.parametrize("make", [lambda: ValidationOptions(resolutions=("big",)), lambda: ValidationOptions(steps=0)])
def test_settings_that_cannot_be_used_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"big|steps"):
        make()


def test_a_clip_is_written_as_a_film_of_its_length_that_looks_like_it(tmp_path: Path) -> None:
    import av
    import numpy as np

    from st.report.files.clip_files import read_frames
    from st.report.files.picture_files import save_picture

    rows, columns = torch.linspace(0, 1, 48)[:, None], torch.linspace(0, 1, 33)[None, :]
    clip = torch.stack([torch.stack([rows * columns * (f + 1) / 5] * 3) for f in range(5)], dim=1)

    path = save_picture(clip, tmp_path / "clip.of", {"parameters": "a cat\nSteps: 3"}, frames_per_second=24)

    frames = list(read_frames(path))
    with av.open(str(path)) as film:
        stream = film.streams.video[0]
        assert (path.name, stream.codec_context.name, stream.average_rate) == ("clip.of.mp4", "h264", 24)
        assert (stream.frames, film.metadata["comment"]) == (5, "a cat\nSteps: 3")
    assert [round(seconds * 24) for _, seconds in frames] == [0, 1, 2, 3, 4]
    for number, (picture, _) in enumerate(frames):
        # An edge that is odd is repeated: the format has even ones.
        shown = torch.from_numpy(np.array(picture.convert("L")))[:, :33] / 255
        assert float((shown - clip[0, number]).abs().mean()) < 0.02


def test_a_clip_of_one_frame_is_a_picture(tmp_path: Path) -> None:
    from st.report.files.picture_files import save_picture

    path = save_picture(torch.rand(3, 1, 8, 8), tmp_path / "still", {}, frames_per_second=24)

    with Image.open(path) as picture:
        assert (path.name, picture.size) == ("still.png", (8, 8))


def test_an_encoder_of_pixels_is_not_asked_about_texts(run: Run, tmp_path: Path) -> None:
    from st.testing.subjects.tiny_parts import TinyText

    class Eye(TinyText):
        name, reads = "eye", ("pixels",)

    encoders = (*run.family.text_encoders(), Eye(tmp_path / "there are no weights"))

    (entry,) = encode_texts(run.family, [Words("a cat")], run.device, encoders).values()

    assert list(entry) == ["text"]


def test_what_a_pipeline_asks_is_asked_in_the_precision_of_training_and_answered_in_that_of_the_weights() -> None:
    module, seen = torch.nn.Linear(2, 2), []
    module.register_forward_hook(lambda module, arguments, answer: seen.append(answer.dtype))

    with called_within(module, lambda: torch.autocast("cpu", torch.bfloat16)):
        inside = module(torch.ones(1, 2))
    outside = module(torch.ones(1, 2))

    assert seen == [torch.bfloat16, torch.float32]
    assert inside.dtype == outside.dtype == torch.float32
    assert not torch.is_autocast_enabled("cpu")


def test_a_call_that_fails_leaves_the_precision_as_it_was() -> None:
    module = torch.nn.Linear(2, 2)

    with called_within(module, lambda: torch.autocast("cpu", torch.bfloat16)), pytest.raises(RuntimeError):
        module(torch.ones(1, 3))

    assert not torch.is_autocast_enabled("cpu")
