"""Validation: pictures of fixed prompts during training, rendered as users of the result will render them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pydantic import Field, field_validator

from st.errors import StError
from st.options import Options
from st.report.picture_files import ENDINGS
from st.report.prompts import PromptOptions, Shot, parse_line, parse_size, read_library, shots, texts
from st.report.tracker import Picture

if TYPE_CHECKING:
    from torch import Tensor

    from st.data.geometry import Geometry
    from st.data.words import Words
    from st.diffusion.sampler import Sampler
    from st.report.rendering import Encodings, Failure, Predict, Renderer
    from st.report.shown import Shown
    from st.train.run import Run


class ValidationOptions(Options):
    """Which pictures are rendered during training, and when."""

    every: int = Field(default=0, ge=0)
    """Steps between two validations. 0 is never."""
    prompts: tuple[str | PromptOptions, ...] = ()
    """Texts to render, with flags as in "a cat --w 512 --d 7", or tables with prompt, name, seed, width and so on."""
    library: str = ""
    """File with further prompts: .toml or .json with a text by name, or one prompt per line with flags."""
    negative: str = ""
    """Text to keep away from, used where guidance is above 1."""
    resolutions: tuple[str, ...] = ("1024",)
    """Sizes that each prompt is rendered at: "1024" for a square, "512x768" for width x height."""
    frames: int = Field(default=1, ge=1)
    """Frames of a clip; 1 renders pictures."""
    seconds: float = Field(default=30.0, gt=0)
    """Length of a sound."""
    steps: int = Field(default=30, ge=1)
    """Sampling steps."""
    guidance: float = Field(default=4.0, ge=0)
    """Strength of guidance; 1 is none and takes half the time."""
    seed: int = 42
    """Seed of the noise that each picture starts from, the same at every validation."""
    sampler: str = "euler"
    """How the prediction is integrated, for families that are not rendered by a pipeline of their own."""
    at_start: bool = True
    """Also render before the first step."""
    compare_base: bool = True
    """Also render the model without the adapter, once, to compare with."""

    @field_validator("resolutions")
    @classmethod
    def _sizes_can_be_read(cls, resolutions: tuple[str, ...]) -> tuple[str, ...]:
        for text in resolutions:
            parse_size(text)
        return resolutions

    def shots(self) -> tuple[Shot, ...]:
        """Every picture to render, in order. Raises StError for a library or a prompt that cannot be used."""
        given = [parse_line(p, "validation.prompts") if isinstance(p, str) else p for p in self.prompts]
        if self.library:
            given += read_library(Path(self.library))
        return shots(given, [parse_size(text) for text in self.resolutions], self.defaults())

    def defaults(self) -> Shot:
        """What a prompt gets that does not say otherwise."""
        return Shot("", "", self.negative, self.seed, (0, 0), self.steps, self.guidance, seconds=self.seconds)


def prompts_to_encode(options: ValidationOptions) -> list[Words]:
    """Everything that validation will need, each once: prompts, and negatives where guidance asks for them.

    Empty where validation never runs. Raises StError for a library or a prompt that cannot be used.
    """
    return texts(options.shots()) if options.every else []


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """What a validator found: pictures to show and numbers to log."""

    pictures: tuple[Picture, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)


class Validator(Protocol):
    """Judges the denoiser in training. Called between steps on every rank; never touches training state."""

    def __call__(self, run: Run) -> ValidationReport: ...


@dataclass(slots=True)
class PromptValidator:
    """Renders the prompts of [validation] into ``samples/step-00000500/NAME-WxH.png``.

    The first time also into ``samples/base``, without the adapter. encodings: by text, for every text of
    ``prompts_to_encode``. predict: how the loop asks the denoiser. weights: entered around rendering, to put the moving
    average in place. spread: ranks share out the pictures; False where every rank must take part in every prediction
    (sharded weights). A picture that fails is reported and left out.
    """

    options: ValidationOptions
    encodings: Encodings
    sampler: Sampler
    predict: Predict | None = None
    weights: Callable[[], AbstractContextManager[object]] = nullcontext
    spread: bool = True
    _shapes: dict[Geometry, tuple[int, ...]] = field(default_factory=dict)
    _shown: Shown | None = None

    def __call__(self, run: Run) -> ValidationReport:
        from st.report.rendering import Renderer
        from st.report.untouched import untouched

        if self._shown is None:
            self._shown = references_shown(run)
        renderer = Renderer(run, self.sampler, self.predict, self._shapes, self._shown)
        wanted = [(shot, renderer.geometry(shot, self.options.frames)) for shot in self.options.shots()]
        samples = run.directory / "samples"
        base_is_there = run.ranks.any((samples / "base").exists())
        pictures: list[Picture] = []
        with untouched(run.denoiser, run.device), ExitStack() as stack:
            if self.options.compare_base and not base_is_there and _disable(run, stack):
                pictures += self._render(renderer, run, wanted, samples / "base")
                stack.close()
            with self.weights():
                pictures += self._render(renderer, run, wanted, samples / f"step-{run.progress.step:08d}")
        return ValidationReport(tuple(pictures))

    def _render(
        self, renderer: Renderer, run: Run, wanted: Sequence[tuple[Shot, Geometry]], folder: Path
    ) -> list[Picture]:
        """Render, write, and list what all ranks have written; ranks other than 0 may list less."""
        from st.report.picture_files import recipe
        from st.report.rendering import Failure

        suffix = " base" if folder.name == "base" else ""
        writes = self.spread or run.ranks.rank == 0
        mine = wanted[run.ranks.rank :: run.ranks.size] if self.spread else wanted
        failed = 0
        with run.report.stage(f"validation{suffix}", len(mine)) as stage:
            for shot, geometry, result in renderer.render(mine, self.encodings):
                # A step that is redone after a resume must not show what was rendered before.
                for old in _files(folder, shot, geometry) if writes else ():
                    old.unlink()
                if isinstance(result, Failure):
                    failed += 1
                    _tell(run, f"{shot.name} {geometry}{suffix}", result)
                elif writes:
                    facts = recipe(shot, str(geometry), self.options.sampler)
                    failed += not _save(run, folder / f"{shot.name}-{geometry}", result, facts)
                stage.advance()
        run.ranks.barrier("validation")
        pictures = [
            Picture(path, shot.prompt, f"{shot.name} {geometry}{suffix}", *_playing(run, geometry))
            for shot, geometry in wanted
            for path in _files(folder, shot, geometry)
        ]
        elsewhere = len(wanted) - len(pictures) - failed
        if elsewhere > 0:
            run.report.warn(f"{elsewhere} validation pictures could not be rendered on other ranks")
        return pictures


def references_shown(run: Run) -> Shown | None:
    """What reads the references of prompts; None where the model is shown none."""
    from st.model.references import references_read
    from st.report.shown import Shown

    read = references_read(run.family, run.adapter)
    return None if read is None else Shown(read.encoder or run.family.codec())


def _playing(run: Run, geometry: Geometry) -> tuple[int, float]:
    """Frames of a clip and how many are shown in a second; (1, 0) of what is none."""
    return (geometry.frames, run.family.codec().frames_per_second) if geometry.frames > 1 else (1, 0.0)


def _save(run: Run, path: Path, pixels: Tensor, facts: Mapping[str, str]) -> bool:
    from st.report.picture_files import save_picture

    try:
        codec = run.family.codec()
        save_picture(pixels, path, facts, codec.sample_rate, frames_per_second=codec.frames_per_second)
    except (OSError, StError) as error:
        run.report.warn(f"the validation picture {path.name!r} could not be written: {error}")
        return False
    return True


def _disable(run: Run, stack: ExitStack) -> bool:
    """Switch the adapter off until the stack closes; False where it is the weights themselves that are trained."""
    try:
        stack.enter_context(run.adapter.disabled(run.denoiser))
    except StError:
        return False
    return True


def _files(folder: Path, shot: Shot, geometry: Geometry) -> list[Path]:
    name = f"{shot.name}-{geometry}"
    return [path for path in (folder / f"{name}{ending}" for ending in ENDINGS) if path.exists()]


def _tell(run: Run, label: str, failure: Failure) -> None:
    advice = "; lower [validation] resolutions" if failure.out_of_memory else ""
    run.report.warn(f"the validation picture {label!r} could not be rendered: {failure.reason}{advice}")
