"""Run: everything that is fixed once a run is assembled, and the one place where the order of a run is written down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st.importing import importing

if TYPE_CHECKING:
    import torch
    from torch import nn

    from st.activation import Plugins
    from st.config import RunConfig
    from st.diffusion.objective import Batch, Objective
    from st.model.adapter import Adapter
    from st.model.blocks import BlockGroup
    from st.model.family import ModelFamily
    from st.randomness import Draws
    from st.report.report import Report
    from st.train.ranks import Ranks


class Outcome(Enum):
    """How a run ended."""

    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    FAILED = "failed"


@dataclass(slots=True)
class Progress:
    """How far the run is; the one mutable part of it, and only the loop advances it.

    step: optimizer steps taken. samples: samples drawn over all ranks, which is the next draw index. epoch: completed
    passes.
    """

    step: int = 0
    samples: int = 0
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint on disk: the adapter's weights, ``state/`` and ``manifest.json``."""

    directory: Path
    step: int


@dataclass(frozen=True, slots=True)
class Run:
    """Everything fixed once a run is assembled. Techniques read it; none writes to it.

    total_steps: optimizer steps at which the run is finished, whether the run file gave steps or epochs.
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
    progress: Progress = field(default_factory=Progress)


def execute(config: RunConfig, plugins: Plugins, *, resume: bool = False, accepted: Sequence[str] = ()) -> Outcome:
    """Train, from settings to the saved adapter. Every step of a run and their order is written down here.

    resume: go on from the newest whole checkpoint of the output folder. accepted: settings that may differ from those
    the run was started with. Raises StError for what a user can mend; the run is then closed properly.
    """
    with importing():
        from st.train import stages
        from st.train.assembly import build_learner, build_step, predictor, prepare_denoiser
        from st.train.loop import train

    ranks = stages.start_ranks(config, plugins)
    with stages.opened(config, plugins, ranks, resume=resume, accepted=accepted) as (folder, report):
        sets = stages.read_data(config, plugins, report)
        encoded = stages.encode(config, plugins, sets, ranks, report)
        loader = stages.build_loader(config, plugins.family, encoded, ranks, report)
        run = stages.load_model(config, plugins, loader, ranks, report)
        saved = stages.newest_checkpoint(folder, report) if resume else None
        groups = prepare_denoiser(run, plugins, saved if saved is None else folder.vault.path(saved))
        learner = build_learner(run, groups, plugins)
        with stages.session(run, learner, loader, plugins, folder) as session:
            if saved is not None:
                with ranks.doing("resuming"):
                    session.restore(saved)
            step = session.guarded(build_step(run, learner, plugins))
            stages.describe(session, encoded[0])
            trackers = plugins.trackers if ranks.main else {}
            report.start(trackers, step=run.progress.step, total=run.total_steps, ranks=ranks.size)
            session.measure_start(predictor(run))
            with ranks.doing("training"):
                outcome = train(run, step, iter(loader), session.announce())
            session.finish(outcome)
            stages.export(session, outcome, encoded[0])
    return outcome
