"""Run: everything that is fixed once a run is assembled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st.progress import Progress
from st.train.beside.requests import Requests

if TYPE_CHECKING:
    import torch
    from torch import nn

    from st.diffusion.objective import Batch, Objective
    from st.model.adapters.adapter import Adapter
    from st.model.family import ModelFamily
    from st.model.inside.blocks import BlockGroup
    from st.randomness import Draws
    from st.report.report import Report
    from st.settings.config import RunConfig
    from st.train.beside.jobs import Jobs
    from st.train.ranks.ranks import Ranks


@dataclass(frozen=True, slots=True)
class Run:
    """Everything fixed once a run is assembled. Techniques read it; none writes to it.

    total_steps: optimizer steps at which the run is finished, whether the run file gave steps or epochs. weights: a
    digest of the denoiser's own, as they were loaded. requests: asks the run to save, validate, pause, stop or change
    its rate. jobs: work beside the loop, such as uploads.
    """

    config: RunConfig
    directory: Path
    family: ModelFamily[Any]
    denoiser: nn.Module
    blocks: tuple[BlockGroup, ...]
    num_blocks: int
    adapter: Adapter
    objective: Objective
    ranks: Ranks
    device: torch.device
    report: Report
    draws: Callable[[Batch], Draws]
    total_steps: int
    jobs: Jobs
    weights: str = ""
    requests: Requests = field(default_factory=Requests)
    progress: Progress = field(default_factory=Progress)
