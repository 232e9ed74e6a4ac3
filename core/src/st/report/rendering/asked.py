"""What a run file asks to be shown and measured while training: [validation] and [evaluation]."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from st.options import Options
from st.report.rendering.prompts import Prompt, PromptOptions, parse_line, parse_size, read_library, sized, texts

if TYPE_CHECKING:
    from collections.abc import Callable

    from st.data.sets.words import Words


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
    resolutions: tuple[str, ...] = ()
    """Sizes that each prompt is rendered at: "1024" for a square, "512x768" for width x height. Unset: a square of the
    first data set's resolution."""
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

    def wanted(self, shown: Callable[[str], str] = str) -> tuple[Prompt, ...]:
        """Every picture to render, in order. Raises StError for a library or a prompt that cannot be used.

        shown: what of a text may stand in the names of files.
        """
        given = [parse_line(p, "validation.prompts") if isinstance(p, str) else p for p in self.prompts]
        if self.library:
            given += read_library(Path(self.library))
        return sized(given, self.sizes(), self.defaults(), shown)

    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each of the resolutions."""
        return [parse_size(text) for text in self.resolutions or ("1024",)]

    def defaults(self) -> Prompt:
        """What a prompt gets that does not say otherwise."""
        return Prompt("", "", self.negative, self.seed, (0, 0), self.steps, self.guidance, seconds=self.seconds)


def prompts_to_encode(options: ValidationOptions) -> list[Words]:
    """Everything that validation will need, each once: prompts, and negatives where guidance asks for them.

    Empty where validation never runs. Raises StError for a library or a prompt that cannot be used.
    """
    return texts(options.wanted()) if options.every else []


class EvaluationOptions(Options):
    """How often, and on how much, the loss of data sets with role "evaluation" is measured."""

    every: int = Field(default=0, ge=0)
    """Steps between two evaluations. 0 is never."""
    times: int = Field(default=8, ge=4, multiple_of=4)
    """Noise levels at which each sample is asked, spread evenly; a whole multiple of 4."""
    samples: int = Field(default=16, ge=1)
    """Samples used of each data set, spread evenly over it and always the same."""
    seed: int = 0
    """Seed of the noise. Only losses of one seed can be compared."""
