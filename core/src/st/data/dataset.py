"""What a run file says about one data set, whatever its samples come from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal, Self

from pydantic import Field, model_validator

from st.options import Options

Unit = Literal["pixel_area", "area", "pixel"]

_OF_SAMPLES = (
    "repeats",
    "weight",
    "max_samples",
    "start_step",
    "end_step",
    "start_epoch",
    "end_epoch",
    "oversubscribe",
)
_OF_CAPTIONS = ("instance_prompt", "caption_prefix", "caption_suffix", "caption_dropout", "shuffle", "missing_caption")
_OF_SIZES = ("resolution", "resolution_type", "minimum_size", "maximum_size", "downsample_to", "align", "max_upscale")
_OF_SHAPES = ("min_aspect", "max_aspect", "crop", "crop_style", "crop_aspect", "crop_aspects")


class WeightedAspect(Options):
    """A crop's shape and how often it is drawn."""

    aspect: float = Field(gt=0)
    """Width divided by height."""
    weight: float = Field(default=1.0, gt=0)
    """Share of the pictures that get this shape, relative to the other shapes' weights."""


class ShuffleOptions(Options):
    """Variants of a caption with its parts in another order. All of them are encoded before training."""

    count: int = Field(1, ge=1)
    """How many shuffled variants are made of each caption."""
    split_on: Literal["comma", "space", "period"] = "comma"
    """What separates the parts of a caption."""
    keep: int = Field(0, ge=0)
    """How many parts at the start stay where they are."""
    include_original: bool = True
    """Also train on the caption as it was written."""
    seed: int | None = None
    """Seed of the orders. The run's seed where it is not set."""


class DatasetOptions(Options):
    """One data set: where it is, which sizes its pictures get, which captions, and when it is used."""

    url: str
    """Where the samples are. The scheme picks the backend; a plain path is a folder on this machine."""
    name: str = ""
    """Name in reports and in the keys of draws. The last part of the url where it is not set."""
    role: Literal["train", "evaluation", "reference"] = "train"
    """Whether the samples are trained on, held out to measure the loss, or shown to the model beside the samples of
    data sets that name this one in reference_sets."""
    reference_sets: tuple[str, ...] = ()
    """Names of the data sets whose samples the model is shown beside these: pictures to edit, control pictures. Each
    sample needs one of the same path, whatever the extensions, in each of them."""
    pairing: Literal["strict", "loose"] = "strict"
    """With role reference: strict gets the size and crop of the sample that it belongs to, and must have its aspect;
    loose gets a size of its own, from this data set's options."""
    missing_reference: Literal["error", "skip"] = "error"
    """What to do with a sample that lacks one in a reference set: stop, or leave it out."""

    resolution: float = Field(1024, gt=0)
    """Size that pictures are brought to, in the unit of resolution_type."""
    resolution_type: Unit = "pixel_area"
    """Unit of sizes: pixel_area is the edge of a square of that area, area is megapixels, pixel the shorter edge."""
    minimum_size: float = Field(0, ge=0)
    """Smaller pictures are left out. In the unit of resolution_type; 0 keeps all."""
    maximum_size: float = Field(0, ge=0)
    """Larger pictures are shrunk to downsample_to before they are cropped. In the unit of resolution_type; 0 is off."""
    downsample_to: float = Field(0, ge=0)
    """Size that pictures above maximum_size are shrunk to before they are cropped, at least resolution."""
    align: int = Field(0, ge=0)
    """Bucket edges are whole multiples of this many pixels. 0 is 64, or what the model needs if 64 does not suit it."""
    max_upscale: float | None = Field(None, ge=0)
    """Pictures that would be enlarged by more than this fraction (0.25: to 1.25 times their edges) are left out."""
    min_aspect: float = Field(0, ge=0)
    """Buckets with a smaller width / height are left out. 0 keeps all."""
    max_aspect: float = Field(0, ge=0)
    """Buckets with a larger width / height are left out. 0 keeps all."""

    crop: bool = False
    """Cut pictures to the shape that crop_aspect names. Without it, only what is over after rounding is trimmed."""
    crop_style: Literal["random", "center", "corner"] = "random"
    """Which part is kept: a place drawn once per picture, the middle, or the top left corner. Trims are centred."""
    crop_aspect: Literal["square", "preserve", "closest", "random"] = "square"
    """Shape of crops: square, the picture's own, the closest of crop_aspects, or one of them drawn per picture."""
    crop_aspects: tuple[float | WeightedAspect, ...] = ()
    """Shapes (width / height) for closest and random; write {aspect = 0.75, weight = 2} to draw one more often."""

    num_frames: int = Field(0, ge=0)
    """Frames used of each clip, rounded down to what the model takes; shorter clips are left out. 0 uses all."""
    min_frames: int = Field(0, ge=0)
    """Clips with fewer frames are left out; below num_frames, those in between keep a length of their own. 0 is
    num_frames."""
    max_frames: int = Field(0, ge=0)
    """Clips with more frames are left out. 0 keeps all."""
    frame_interval: int = Field(1, ge=1)
    """Clips that keep a length of their own are grouped in steps of this many frames."""
    fps: float = Field(0, ge=0)
    """Frames per second that clips are brought to, by the times of their frames. 0 keeps each clip's own."""
    seconds: float = Field(0, ge=0)
    """Length used of each sound; shorter ones are left out. 0 uses all of each, in steps of duration_interval."""
    min_seconds: float = Field(0, ge=0)
    """Shorter sounds are left out; below seconds, those in between keep a length of their own. 0 is seconds."""
    max_seconds: float = Field(0, ge=0)
    """Longer sounds are left out. 0 keeps all."""
    duration_interval: float = Field(3.0, gt=0)
    """Sounds that keep a length of their own are grouped in steps of this many seconds, the rest is cut off."""
    window: Literal["start", "middle", "end", "random"] = "start"
    """Which part of a longer clip or sound is used; random is drawn once for each and then stays."""
    windows: int = Field(1, ge=1)
    """Parts of a clip or sound that are used, each a sample: one after another from start or end, else spread out."""
    keep_silence: bool = False
    """Train on sounds in which nothing is heard (no peak above -80 dB). They are named and left out otherwise."""

    repeats: int = Field(0, ge=0)
    """Further passes over this data set in each epoch. 0 shows each sample once."""
    weight: float = Field(1.0, gt=0)
    """How often this data set is drawn from, relative to its length and to the other data sets' weights: with twice the
    weight of another, twice in the epoch in which that one is seen once."""
    max_samples: int = Field(0, ge=0)
    """Use only this many samples, the same ones every time. 0 uses all."""
    start_step: int = Field(0, ge=0)
    """Optimizer step from which the data set is used."""
    end_step: int = Field(0, ge=0)
    """Last optimizer step at which the data set is used. 0 is no end."""
    start_epoch: int = Field(1, ge=1)
    """Epoch from which the data set is used, counted from 1."""
    end_epoch: int = Field(0, ge=0)
    """Last epoch in which the data set is used. 0 is no end."""
    oversubscribe: bool = False
    """Fill batches by showing samples again where a bucket has fewer than a batch needs."""

    instance_prompt: tuple[str, ...] | str = ()
    """Caption of every sample, in place of the data set's own. With a list, one is drawn per visit."""
    caption_prefix: str = ""
    """Text put before each caption, exactly as written: end it with a space or a comma."""
    caption_suffix: str = ""
    """Text put after each caption, exactly as written."""
    caption_dropout: float = Field(0.1, ge=0, le=1)
    """Fraction of visits at which the caption is replaced by an empty one, which classifier-free guidance needs."""
    shuffle: ShuffleOptions | None = None
    """Also train on captions whose parts are in another order."""
    missing_caption: Literal["error", "empty", "skip"] = "error"
    """What to do with a sample without a caption: stop, train it on an empty caption, or leave it out."""

    max_unreadable: float = Field(0.05, ge=0, le=1)
    """Fraction of files that may turn out unreadable. They are named and left out; with more of them the run stops."""

    @property
    def label(self) -> str:
        """The name that reports and draws use."""
        return (
            self.name or PurePosixPath(self.url.partition(":")[2].rstrip("/") or self.url.rstrip("/")).name or self.url
        )

    @property
    def instance_prompts(self) -> tuple[str, ...]:
        prompts = self.instance_prompt
        return (prompts,) if isinstance(prompts, str) and prompts else tuple(prompts)

    @property
    def aspects(self) -> tuple[WeightedAspect, ...]:
        """``crop_aspects`` with a weight on each."""
        return tuple(a if isinstance(a, WeightedAspect) else WeightedAspect(aspect=a) for a in self.crop_aspects)

    @property
    def area(self) -> float:
        """``resolution`` as a number of pixels; of a square picture, where the unit is its edge."""
        return pixels(self.resolution, self.resolution_type)

    @model_validator(mode="after")
    def _sizes_are_in_their_unit(self) -> Self:
        unit = self.resolution_type
        if unit == "area":
            for name, value, limit in (("resolution", self.resolution, 5), ("minimum_size", self.minimum_size, 5)):
                if value > limit:
                    raise ValueError(
                        f"{name} = {value:g} is in megapixels here; with resolution_type = 'area' it is at most 5"
                    )
            if self.maximum_size >= 20:
                raise ValueError(f"maximum_size = {self.maximum_size:g} is in megapixels here; it must be below 20")
        elif self.resolution < 16:
            raise ValueError(
                f"resolution = {self.resolution:g} is in pixels here; for megapixels set resolution_type = 'area'"
            )
        if unit == "pixel_area" and not float(self.resolution).is_integer():
            raise ValueError(f"resolution = {self.resolution!r} must be a whole number of pixels")
        return self

    @model_validator(mode="after")
    def _lengths_are_possible(self) -> Self:
        for least, used, most in (
            ("min_frames", "num_frames", "max_frames"),
            ("min_seconds", "seconds", "max_seconds"),
        ):
            low, length, high = getattr(self, least), getattr(self, used), getattr(self, most)
            if length and low > length:
                raise ValueError(f"{least} = {low:g} is above {used} = {length:g}")
            if high and high < max(low, length):
                name = used if length >= low else least
                raise ValueError(f"{most} = {high:g} is below {name} = {max(low, length):g}")
        if self.num_frames and self.frame_interval > 1 and not self.min_frames:
            raise ValueError("frame_interval has no effect with num_frames: set min_frames to keep shorter clips")
        if self.seconds and "duration_interval" in self.model_fields_set and not self.min_seconds:
            raise ValueError("duration_interval has no effect with seconds: set min_seconds to keep shorter sounds")
        return self

    @model_validator(mode="after")
    def _crops_are_possible(self) -> Self:
        if bool(self.maximum_size) != bool(self.downsample_to):
            raise ValueError("maximum_size and downsample_to go together: set both or neither")
        if self.maximum_size and not self.crop:
            raise ValueError("maximum_size has no effect without crop = true")
        if self.downsample_to and self.downsample_to < self.resolution:
            raise ValueError(f"downsample_to = {self.downsample_to:g} is smaller than resolution = {self.resolution:g}")
        if self.crop and self.crop_aspect in ("closest", "random") and not self.crop_aspects:
            raise ValueError(f"crop_aspect = {self.crop_aspect!r} needs crop_aspects, such as [1.0, 0.75, 1.33]")
        if self.crop_aspects and not (self.crop and self.crop_aspect in ("closest", "random")):
            raise ValueError("crop_aspects has no effect without crop = true and crop_aspect 'closest' or 'random'")
        if self.max_aspect and self.max_aspect < self.min_aspect:
            raise ValueError(f"max_aspect = {self.max_aspect:g} is below min_aspect = {self.min_aspect:g}")
        return self

    @model_validator(mode="after")
    def _references_have_an_effect(self) -> Self:
        if self.role != "reference":
            if self.pairing != "strict":
                raise ValueError("pairing = 'loose' has no effect without role = 'reference'")
            return self
        # By value: a run's stored settings name every option.
        changed = [name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default]
        for name in ("reference_sets", "missing_reference", *_OF_SAMPLES, *_OF_CAPTIONS):
            if name in changed:
                raise ValueError(f"{name} has no effect with role = 'reference': set it where the samples are")
        for name in (*_OF_SIZES, *_OF_SHAPES):
            if self.pairing == "strict" and name in changed:
                raise ValueError(f"{name} has no effect with pairing = 'strict': it is the sample's that counts")
        return self


def pixels(size: float, unit: Unit) -> float:
    """A size of a run file as an area in pixels: of the square with that edge, or of that many megapixels."""
    return size * 1e6 if unit == "area" else size * size


def edge(size: float, unit: Unit) -> float:
    """A size of a run file as an edge in pixels: of the square with that area where the unit is an area."""
    return math.sqrt(size * 1e6) if unit == "area" else size


@dataclass(frozen=True, slots=True)
class DatasetConfig:
    """One ``[[dataset]]`` of a run. backend: options of the backend that the url's ``scheme`` ("file") names."""

    options: DatasetOptions
    backend: Options
    scheme: str

    @property
    def name(self) -> str:
        return self.options.label
