"""Validation: pictures of fixed prompts during training, rendered as users of the result will render them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from st.errors import StError
from st.redaction import PLAIN, Redaction
from st.report.files.picture_files import ENDINGS
from st.report.tracker import Picture

if TYPE_CHECKING:
    from torch import Tensor

    from st.data.geometry import Geometry
    from st.diffusion.sampler import Sampler
    from st.report.files.sound_files import Sound
    from st.report.pages import Stage
    from st.report.rendering.asked import ValidationOptions
    from st.report.rendering.prompts import Prompt
    from st.report.rendering.rendering import Encodings, Failure, Predict, Renderer
    from st.report.rendering.shown import Shown
    from st.train.parts.run import Run
    from st.train.validation.validator import Rendered


@dataclass(slots=True)
class PromptValidator:
    """Renders the prompts of [validation] into ``samples/step-00000500/NAME-WxH.png``.

    The first time also into ``samples/base``, without the adapter. encodings: by text, for every text of
    ``prompts_to_encode``. predict: how the loop asks the denoiser. weights: entered around rendering, to put the moving
    average in place. spread: ranks share out the pictures; False where every rank must take part in every prediction
    (sharded weights). within: entered around each call of the denoiser by a family's own pipeline. redaction: of
    what is written of prompts. A picture that fails is reported and left out.
    """

    options: ValidationOptions
    encodings: Encodings
    sampler: Sampler
    predict: Predict | None = None
    weights: Callable[[], AbstractContextManager[object]] = nullcontext
    spread: bool = True
    within: Callable[[], AbstractContextManager[object]] = nullcontext
    redaction: Redaction = PLAIN
    _shapes: dict[Geometry, tuple[int, ...]] = field(default_factory=dict)
    _shown: Shown | None = None
    _asked: bool = False

    def __call__(self, run: Run, *, keep: bool = False) -> tuple[tuple[Picture, ...], tuple[Rendered, ...]]:
        """What is shown; with ``keep`` also what was rendered with the weights in training, all of it on rank 0."""
        from st.report.rendering.rendering import Renderer
        from st.train.validation.untouched import untouched

        if self._shown is None:
            self._shown = references_shown(run)
        first, self._asked = not self._asked, True
        renderer = Renderer(run, self.sampler, self.predict, self._shapes, self._shown, within=self.within)
        prompts = self.options.wanted(self.redaction.text)
        wanted = [(prompt, renderer.geometry(prompt, self.options.frames)) for prompt in prompts]
        for sentence in dict.fromkeys(capped(run, prompt, geometry) for prompt, geometry in wanted) if first else ():
            if sentence:
                run.report.warn(sentence)
        samples = run.directory / "samples"
        base_is_there = run.ranks.any((samples / "base").exists())
        pictures: list[Picture] = []
        rendered: list[tuple[int, Rendered]] = []
        is_all = False
        with untouched(run.denoiser, run.device), ExitStack() as stack:
            if self.options.compare_base and not base_is_there and _disable(run, stack):
                # The same weights would draw the same pictures.
                is_all = run.progress.step == 0 and run.adapter.begins_as_base
                pictures += self._render(renderer, run, wanted, samples / "base", rendered if keep and is_all else None)
                stack.close()
            if not is_all:
                with self.weights():
                    folder = samples / f"step-{run.progress.step:08d}"
                    pictures += self._render(renderer, run, wanted, folder, rendered if keep else None)
        everywhere = run.ranks.collect(rendered) if keep else []
        ordered = sorted((pair for there in everywhere for pair in there), key=lambda pair: pair[0])
        return tuple(pictures), tuple(one for _, one in ordered)

    def _render(
        self,
        renderer: Renderer,
        run: Run,
        wanted: Sequence[tuple[Prompt, Geometry]],
        folder: Path,
        kept: list[tuple[int, Rendered]] | None = None,
    ) -> list[Picture]:
        """Render, write, and list what all ranks have written; ranks other than 0 may list less.

        kept: gets what this rank has written, with its place among those wanted.
        """
        from st.report.rendering.prompts import recipe
        from st.report.rendering.rendering import Failure
        from st.train.validation.validator import Rendered

        suffix = " base" if folder.name == "base" else ""
        writes = run.ranks.rank % run.ranks.sequence == 0 if self.spread else run.ranks.main
        mine = wanted[run.ranks.share :: run.ranks.data] if self.spread else wanted
        failed = 0
        with run.report.stage(f"validation{suffix}", len(mine)) as stage:
            renderer.on_step = _watching(stage, [prompt for prompt, _ in mine])
            for number, (prompt, geometry, result) in enumerate(renderer.render(mine, self.encodings)):
                # A step that is redone after a resume must not show what was rendered before.
                for old in _files(folder, prompt, geometry) if writes else ():
                    old.unlink()
                if isinstance(result, Failure):
                    failed += 1
                    _tell(run, f"{prompt.name} {geometry}{suffix}", result)
                elif writes:
                    facts = self.redaction.data(recipe(prompt, str(geometry), self.options.sampler))
                    sound = renderer.sounds.get((prompt.name, geometry))
                    file = _save(run, folder / f"{prompt.name}-{geometry}", (result, sound), facts)
                    failed += file is None
                    if file is not None and kept is not None:
                        place = number * run.ranks.data + run.ranks.share if self.spread else number
                        kept.append((place, Rendered(prompt, geometry, result, file, sound)))
                stage.advance()
        run.ranks.barrier("validation")
        pictures = [
            Picture(path, prompt.text, f"{prompt.name} {geometry}{suffix}", *_playing(run, geometry))
            for prompt, geometry in wanted
            for path in _files(folder, prompt, geometry)
        ]
        elsewhere = len(wanted) - len(pictures) - failed
        if elsewhere > 0:
            run.report.warn(f"{elsewhere} validation pictures could not be rendered on other ranks")
        return pictures


def _watching(stage: Stage, prompts: Sequence[Prompt]) -> Callable[[Prompt, int], None]:
    """Shows how far a stage with a piece for each prompt is, by the steps that were taken."""
    total, taken = sum(prompt.steps for prompt in prompts), 0

    def on_step(prompt: Prompt, done: int) -> None:
        nonlocal taken
        taken += 1
        stage.at(min(taken / total, 1.0) * len(prompts))

    return on_step


def capped(run: Run, prompt: Prompt, geometry: Geometry) -> str:
    """What is said of a picture that was asked for larger than the model draws; '' of any other."""
    height, width = prompt.size
    if not geometry.height or not run.family.geometry.caps(height, width):
        return ""
    return (
        f"{width}x{height} is more than this model draws: pictures are rendered at {geometry.width}x{geometry.height}"
    )


def references_shown(run: Run) -> Shown | None:
    """What reads the references of prompts; None where the model is shown none."""
    from st.model.adapters.references import references_read
    from st.model.quantize.quantizer import text_encoders
    from st.report.rendering.shown import Shown

    read = references_read(run.family, run.adapter)
    joint = [one for one in run.family.text_encoders() if one.reads_captions and one.reads_samples]
    if joint:
        names = {one.name for one in joint}
        joint = [one for one in text_encoders(run.config.quantizer, run.family) if one.name in names]
    if read is None and not joint:
        return None
    return Shown((read.encoder if read else None) or run.family.codec(), joint=tuple(joint))


def _playing(run: Run, geometry: Geometry) -> tuple[int, float]:
    """Frames of a clip and how many are shown in a second; (1, 0) of what is none."""
    return (geometry.frames, run.family.codec().frames_per_second) if geometry.frames > 1 else (1, 0.0)


def _save(run: Run, path: Path, made: tuple[Tensor, Sound | None], facts: Mapping[str, str]) -> Path | None:
    """The file; None where it could not be written, which is reported."""
    from st.report.files.picture_files import save_picture

    try:
        codec, (pixels, sound) = run.family.codec(), made
        rate = codec.frames_per_second
        return save_picture(pixels, path, facts, codec.sample_rate, frames_per_second=rate, sound=sound)
    except (OSError, StError) as error:
        run.report.warn(f"the validation picture {path.name!r} could not be written: {error}")
        return None


def _disable(run: Run, stack: ExitStack) -> bool:
    """Switch the adapter off until the stack closes; False where it is the weights themselves that are trained."""
    try:
        stack.enter_context(run.adapter.disabled(run.denoiser))
    except StError:
        return False
    return True


def _files(folder: Path, prompt: Prompt, geometry: Geometry) -> list[Path]:
    name = f"{prompt.name}-{geometry}"
    return [path for path in (folder / f"{name}{ending}" for ending in ENDINGS) if path.exists()]


def _tell(run: Run, label: str, failure: Failure) -> None:
    advice = "; lower [validation] resolutions" if failure.out_of_memory else ""
    run.report.warn(f"the validation picture {label!r} could not be rendered: {failure.reason}{advice}")
