"""RunConfig: everything that a run file says, typed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from st.options import Options
from st.reading.runfile import Location
from st.redaction import Redaction
from st.registrar import Choice

if TYPE_CHECKING:
    from st.data.cache.cache import CacheOptions
    from st.data.dataset import DatasetConfig
    from st.data.feed.loader import LoaderOptions
    from st.diffusion.noise import NoiseOptions
    from st.diffusion.objective import MaskOptions, StreamOptions
    from st.diffusion.shift import ShiftOptions
    from st.model.inside.compiling import CompileOptions
    from st.model.inside.recompute import RecomputeOptions
    from st.report.rendering.asked import EvaluationOptions, ValidationOptions
    from st.report.report import ReportOptions
    from st.train.ranks.gradients import ClipOptions
    from st.train.ranks.ranks import RanksOptions
    from st.train.saving.checkpoint import CheckpointOptions
    from st.train.saving.metadata import MetadataOptions
    from st.train.updates.average import AverageOptions
    from st.train.updates.groups import GroupOptions

SECTIONS = {
    "clip": "st.train.ranks.gradients:ClipOptions",
    "shift": "st.diffusion.shift:ShiftOptions",
    "noise": "st.diffusion.noise:NoiseOptions",
    "mask": "st.diffusion.objective:MaskOptions",
    "streams": "st.diffusion.objective:StreamOptions",
    "average": "st.train.updates.average:AverageOptions",
    "recompute": "st.model.inside.recompute:RecomputeOptions",
    "compile": "st.model.inside.compiling:CompileOptions",
    "loader": "st.data.feed.loader:LoaderOptions",
    "cache": "st.data.cache.cache:CacheOptions",
    "checkpoint": "st.train.saving.checkpoint:CheckpointOptions",
    "validation": "st.report.rendering.asked:ValidationOptions",
    "evaluation": "st.report.rendering.asked:EvaluationOptions",
    "report": "st.report.report:ReportOptions",
    "metadata": "st.train.saving.metadata:MetadataOptions",
    "ranks": "st.train.ranks.ranks:RanksOptions",
}
"""Sections of a run file, and whose options they are."""

CHOICES: dict[str, str] = {
    "adapter": "lora",
    "quantizer": "",
    "optimizer": "adamw",
    "schedule": "constant",
    "density": "",
    "weighting": "uniform",
    "distance": "l2",
}
"""Sections that choose a strategy by ``kind``, and the one for a file without it; '' where the family decides."""

ABSENT_IS_OFF = frozenset({"average", "quantizer"})
"""Sections whose absence means that nothing is done."""


class RunOptions(Options):
    """The settings at the top of a run file."""

    plugins: tuple[str, ...] = ()
    """Plugins that are active, in order; "no:NAME" takes one away and "./file.py:Class" loads one from a file."""
    output: str = ""
    """Folder for everything the run writes."""
    name: str = ""
    """Name of the run for people and trackers. The output folder's name where it is not set."""
    seed: int = Field(42, ge=-(2**63), lt=2**63)
    """Seed of every draw. The same seed gives the same run on any number of devices."""
    steps: int | None = Field(None, ge=1)
    """Optimizer steps to train for. Set this or epochs."""
    epochs: float | None = Field(None, gt=0)
    """Passes over the data to train for. Set this or steps."""
    batch: int = Field(1, ge=1)
    """Samples per device and microbatch."""
    accumulate: int = Field(1, ge=1, le=1_000_000)
    """Microbatches per optimizer step."""
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    """Number format that the denoiser computes in."""
    device: str = "auto"
    """Where to train: auto, cpu, cuda, mps or a name that torch knows."""
    deterministic: bool = False
    """Use only algorithms that give the same bits each time, which some devices do not by themselves. Slower there, and
    an operation without such an algorithm stops the run."""


class ValidatorOptions(Options):
    """A measurement that a plugin brings, besides pictures and held-out losses. Its own settings stand beside these."""

    kind: str
    """Which validator."""
    name: str = ""
    """What its metrics are logged under, as NAME/METRIC; empty for its kind."""
    every: int = Field(ge=1)
    """Optimizer steps between two measurements."""

    @property
    def label(self) -> str:
        """What its metrics are logged under."""
        return self.name or self.kind


@dataclass(frozen=True, slots=True)
class RunConfig:
    """Every setting of a run. The attributes are the run file's keys, lists in the plural.

    ``plugin`` gives the options of an active plugin.

    model is the family's options. groups are those of ``[[optimizer.groups]]``. quantizer and average are None where
    the run file has no such section. cache_store opens the cache's url: the backend that it names, with what that one
    needs to know of ``[cache]``. redaction takes what came from the environment out of what is written.
    """

    plugins: tuple[str, ...]
    output: str
    name: str
    seed: int
    steps: int | None
    epochs: float | None
    batch: int
    accumulate: int
    precision: Literal["fp32", "bf16", "fp16"]
    device: str
    deterministic: bool
    model: Options
    adapter: Choice
    quantizer: Choice | None
    optimizer: Choice
    groups: tuple[GroupOptions, ...]
    schedule: Choice
    density: Choice
    weighting: Choice
    distance: Choice
    clip: ClipOptions
    shift: ShiftOptions
    noise: NoiseOptions
    mask: MaskOptions
    streams: StreamOptions
    average: AverageOptions | None
    recompute: RecomputeOptions
    compile: CompileOptions
    datasets: tuple[DatasetConfig, ...]
    validators: tuple[tuple[ValidatorOptions, Choice], ...]
    loader: LoaderOptions
    cache: CacheOptions
    cache_store: Choice
    checkpoint: CheckpointOptions
    validation: ValidationOptions
    evaluation: EvaluationOptions
    report: ReportOptions
    metadata: MetadataOptions
    ranks: RanksOptions
    plugin_options: Mapping[str, Options]
    origins: Mapping[Location, str]
    placeholders: Mapping[Location, str]
    redaction: Redaction

    def plugin(self, name: str) -> Options | None:
        """An active plugin's options, or None where no such plugin is active."""
        return self.plugin_options.get(name)

    def origin(self, location: Location) -> str:
        """Where a value was written: ``run.toml:14``, ``--set``, ``ST_OPTIMIZER__LR``, or ``default`` for nowhere."""
        inside = (text for place, text in self.origins.items() if place[: len(location)] == location)
        return self.origins.get(location) or next(inside, "default")

    def plain(self) -> dict[str, Any]:
        """Everything as JSON data in the layout of a run file: written to a file it gives the same run.

        A value that held ``{env:NAME}`` is given as it was written, and so is whatever was made of it: secrets do not
        reach a run's folder.
        """
        data: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in {"plugin_options", "origins", "placeholders", "redaction"}:
                continue
            if field.name == "datasets":
                data["dataset"] = [{**_dumped(item.options), **_dumped(item.backend)} for item in value]
            elif field.name == "groups":
                if value:
                    data["optimizer"]["groups"] = [_dumped(group) for group in value]
            elif field.name == "cache_store":
                data["cache"] |= _dumped(value.options)
            elif field.name == "validators":
                data["validator"] = [{**_plain(choice), "name": own.name, "every": own.every} for own, choice in value]
            else:
                data[field.name] = _plain(value)
        for name, options in self.plugin_options.items():
            if options is not self.model:
                data[name] = _dumped(options)
        for location, text in self.placeholders.items():
            _put(data, location, text)
        plain: dict[str, Any] = self.redaction.data(data)
        return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Choice):
        return {"kind": value.kind, **_dumped(value.options)}
    if isinstance(value, Options):
        return _dumped(value)
    return list(value) if isinstance(value, tuple) else value


def _dumped(options: Options) -> dict[str, Any]:
    return options.model_dump(mode="json")


def _put(data: Any, location: Location, text: str) -> None:
    for step in location[:-1]:
        data = data[step]
    data[location[-1]] = text


def section_options(section: str) -> type[Options]:
    """The Options class of a section of the core."""
    module, _, name = SECTIONS[section].partition(":")
    cls: type[Options] = getattr(import_module(module), name)
    return cls


def section_names() -> list[str]:
    """Everything at the top of a run file that is not a plugin's section."""
    return ["model", "dataset", "validator", *CHOICES, *SECTIONS]
