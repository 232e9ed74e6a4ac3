"""Options of crepa: what tokens agree with, how that is measured, and how much it counts at which step."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from st import Options


class CrepaOptions(Options):
    """What a block's tokens learn to agree with, and how much it counts."""

    block_index: int = 8
    """Block whose output tokens are aligned, counted from 0; negative counts from the end."""
    feature_source: Literal["encoder", "backbone"] = "encoder"
    """What they are aligned with: a frozen vision encoder's features of each frame, or a later block of the denoiser
    itself, through which no gradient flows."""
    teacher_block_index: int | None = None
    """That later block, with `feature_source = "backbone"`; negative counts from the end."""
    model: str = "facebook/dinov2-giant"
    """Vision encoder: a folder in transformers' layout, or a repository on the hub. Any DINOv2, with registers or not.
    """
    encoder_image_size: int = Field(224, ge=1)
    """Edge in pixels that frames are resized to for it, a multiple of its patch (14 for DINOv2). The cache grows with
    its square: 518 keeps 5 times as much as 224."""
    encoder_frames_batch_size: int = Field(16, ge=1)
    """Frames per call of the vision encoder. Fewer need less memory, once, when the cache is filled."""
    weight: float = Field(0.5, gt=0)
    """How much the alignment counts beside the loss (the papers' lambda)."""
    adjacent_distance: int = Field(1, ge=0)
    """Frames from a frame to the neighbours, before and after, that its tokens are aligned with too; 0 for none."""
    adjacent_tau: float = Field(1.0, gt=0)
    """How slowly neighbours count less with their distance d: by exp(-d / tau)."""
    cumulative_neighbors: bool = False
    """All neighbours up to that distance, not only those at it."""
    normalize_neighbour_sum: bool = False
    """Divide a frame's sum of similarities by the sum of their weights, so that frames with one neighbour count alike.
    """
    normalize_by_frames: bool = True
    """Average over frames; off, frames are summed, and long clips count more."""
    spatial_align: bool = True
    """Compare token by token, on the smaller of the two grids; off, the means over each frame."""
    spatial_norm: float = Field(0.0, ge=0, le=1)
    """Share of their mean over a frame that is taken from the features before they are divided by their spread (iREPA,
    arXiv:2512.10794, uses 0.6); 0 leaves them alone."""
    projector_kernel_size: int = Field(1, ge=1)
    """Edge of the projector's kernel: 1 is a linear layer, 3 a convolution over a frame's tokens, as in iREPA. Odd."""
    manifold_weight: float = Field(0.0, ge=0)
    """How much the squared difference between the two token-by-token similarity matrices of a frame counts, relative to
    the alignment (U-REPA, arXiv:2503.18414, uses 3 on U-Nets)."""
    width: int = Field(0, ge=0)
    """Width of the block's tokens; 0 takes it from the block's layers."""
    scheduler: Literal["constant", "linear", "cosine", "polynomial"] = "constant"
    """How the weight goes from `weight` to `weight_end`."""
    weight_end: float = Field(0.0, ge=0)
    """Weight at the end of the schedule; not for "constant"."""
    power: float = Field(1.0, gt=0)
    """Exponent of "polynomial"."""
    warmup_steps: int = Field(0, ge=0)
    """Steps in which the weight rises from 0."""
    decay_steps: int = Field(0, ge=0)
    """Steps, warm-up included, after which the schedule has ended; 0 for those of the run. Not for "constant"."""
    start_step: int = Field(0, ge=0)
    """Step at which alignment begins, and the schedule with it."""
    cutoff_step: int = Field(0, ge=0)
    """Step from which there is none; 0 for never."""
    similarity_threshold: float | None = Field(None, ge=-1, le=1)
    """Mean cosine similarity with the own frame from which there is none. Reading it stops the device once a step."""
    similarity_ema_decay: float = Field(0.99, ge=0, lt=1)
    """Share of the old value that the moving average of the similarity keeps in a step."""
    threshold_mode: Literal["permanent", "recoverable"] = "permanent"
    """Whether it stays off, or comes back when the similarity falls below the threshold."""

    @model_validator(mode="after")
    def _every_option_counts(self) -> Self:
        backbone = self.feature_source == "backbone"
        if backbone and self.teacher_block_index is None:
            raise ValueError('feature_source = "backbone" needs teacher_block_index, the later block to agree with')
        constant, unlimited = self.scheduler == "constant", self.similarity_threshold is None
        no_neighbours = not self.adjacent_distance
        self._moot(not backbone, 'feature_source = "encoder"', "teacher_block_index")
        encoder = ("model", "encoder_image_size", "encoder_frames_batch_size")
        self._moot(backbone, 'feature_source = "backbone"', *encoder)
        self._moot(constant, 'scheduler = "constant"', "weight_end", "decay_steps")
        self._moot(self.scheduler != "polynomial", f'scheduler = "{self.scheduler}"', "power")
        self._moot(unlimited, "no similarity_threshold", "similarity_ema_decay", "threshold_mode")
        neighbours = ("adjacent_tau", "cumulative_neighbors", "normalize_neighbour_sum")
        self._moot(no_neighbours, "adjacent_distance = 0", *neighbours)
        self._moot(not self.spatial_align, "spatial_align = false", "manifold_weight")
        return self

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.projector_kernel_size % 2:
            raise ValueError(f"projector_kernel_size = {self.projector_kernel_size}: must be odd")
        if self.cutoff_step and self.cutoff_step <= self.start_step:
            raise ValueError(f"cutoff_step = {self.cutoff_step} comes before start_step = {self.start_step} has begun")
        if self.decay_steps and self.decay_steps <= self.warmup_steps:
            raise ValueError(f"decay_steps = {self.decay_steps} leaves nothing behind warmup_steps")
        return self

    def _moot(self, off: bool, because: str, *names: str) -> None:
        # Compared with the defaults, not with what was written: a saved run's settings name every option.
        fields = type(self).model_fields
        moot = [name for name in names if getattr(self, name) != fields[name].default]
        if off and moot:
            raise ValueError(f"with {because}, these have no effect: {', '.join(moot)}")

    @property
    def neighbours_asked_for(self) -> bool:
        """Whether the run file says something of neighbouring frames."""
        fields = type(self).model_fields
        asked = ("adjacent_distance", "adjacent_tau", "cumulative_neighbors", "normalize_neighbour_sum")
        return any(getattr(self, name) not in (fields[name].default, 0) for name in asked)

    def weight_at(self, step: int, total: int) -> float | None:
        """The weight at a step counted from 0, of ``total``; None from ``cutoff_step`` on."""
        import math

        if self.cutoff_step and step >= self.cutoff_step:
            return None
        since = step - self.start_step
        if since < 0:
            return 0.0
        if since < self.warmup_steps:
            return self.weight * since / self.warmup_steps
        end = self.decay_steps or total - self.start_step
        done = min((since - self.warmup_steps) / max(end - self.warmup_steps, 1), 1.0)
        if self.scheduler == "linear":
            return self.weight + (self.weight_end - self.weight) * done
        if self.scheduler == "cosine":
            return self.weight_end + (self.weight - self.weight_end) * (1 + math.cos(math.pi * done)) / 2
        if self.scheduler == "polynomial":
            return (self.weight - self.weight_end) * math.pow(1 - done, self.power) + self.weight_end
        return self.weight
