"""Validator: what a plugin measures during training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import st.options
from st.registrar import StrategyKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from st.data.geometry import Geometry
    from st.report.files.sound_files import Sound
    from st.report.rendering.prompts import Prompt
    from st.report.tracker import Picture
    from st.train.parts.run import Run


VALIDATOR: StrategyKind[Callable[[Any], Validator]] = StrategyKind("validator")
"""``[[validator]] kind``: what is measured during training; usually a ``Validator`` class, with its Options."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """What validation made of one prompt with the weights in training.

    pixels: (3, H, W) in [0, 1], a clip (3, F, H, W), or a sound (channels, samples) in [-1, 1]; float32 on the CPU, as
    the model gave it, so not always finite. file: where it lies, rounded to what its format holds. sound: what is heard
    with a picture or clip, from a model of several streams: ``samples`` (channels, samples) in [-1, 1], float32 on the
    CPU, and ``sample_rate`` in Hz; None where nothing is. Of a model of sounds alone ``pixels`` is the sound.
    """

    prompt: Prompt
    geometry: Geometry
    pixels: Tensor
    file: Path
    sound: Sound | None = None


@dataclass(frozen=True, slots=True)
class ValidationReport:
    """What a validator found: numbers to log, by name, and pictures to show.

    Metrics are logged as ``NAME/METRIC`` with the name that the validator has in the run file: its kind, where no other
    is set. ``checkpoint.best`` takes one of these.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    pictures: tuple[Picture, ...] = ()


class Validator(ABC):
    """Judges the model in training: ``[[validator]] kind``, on every rank, before the first step and when it is due.

    The weights are those that are saved (the moving average, where there is one), in eval mode, without gradients;
    modes and random numbers are put back after. An exception is reported; the run goes on.
    """

    Options: ClassVar[type[st.options.Options]] = st.options.Options
    scores_pictures: ClassVar[bool] = False
    """Whether the prompts of [validation] are rendered for it whenever it is due."""

    def __init__(self, options: st.options.Options) -> None:
        self.options = options

    @abstractmethod
    def validate(self, run: Run, rendered: Sequence[Rendered]) -> ValidationReport:
        """Measure. Only what rank 0 finds is logged.

        rendered: in the order of the prompts, without those that failed; all on rank 0, none on others. Empty where
        ``scores_pictures`` is false and [validation] is not due at this step.
        """
