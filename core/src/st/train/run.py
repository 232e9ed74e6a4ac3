"""The order of a run, from settings to the saved adapter: the one place where it is written down."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from st.importing import importing

if TYPE_CHECKING:
    from st.plugins.activation import Plugins
    from st.progress import Outcome
    from st.settings.config import RunConfig


def execute(config: RunConfig, plugins: Plugins, *, resume: bool = False, accepted: Sequence[str] = ()) -> Outcome:
    """Train, from settings to the saved adapter. Every step of a run and their order is written down here.

    resume: go on from the newest whole checkpoint of the output folder. accepted: settings that may differ from those
    the run was started with. Raises StError for what a user can mend; the run is then closed properly.
    """
    from st.train.beside.listening import Listening

    with Listening(config.checkpoint.grace_seconds) as listening:
        with importing():
            from st.train import stages
            from st.train.assembly import build_learner, build_step, prepare_denoiser
            from st.train.checks.manifest import require_same
            from st.train.checks.motion import why_still
            from st.train.closing import session as session_of
            from st.train.loop import train
            from st.train.start import load_model

        ranks = stages.start_ranks(config, plugins)
        with stages.opened(config, plugins, ranks, resume=resume, accepted=accepted) as (folder, report):
            listening.open(report, folder.directory if ranks.main else None)
            stages.introduce(plugins, report)
            saved = stages.newest_checkpoint(folder, report) if resume else None
            sets = stages.read_data(config, plugins, report)
            encoded = stages.encode(config, plugins, sets, ranks, report)
            loader = stages.build_loader(config, plugins.family, encoded, ranks, report)
            run = load_model(config, plugins, loader, ranks, report, requests=listening.requests)
            made = stages.made_of(run, plugins, encoded[0])
            if saved is not None:
                require_same(folder, made, accepted, report)
            checkpoint = None if saved is None else folder.vault.path(saved)
            groups = prepare_denoiser(run, plugins, checkpoint)
            learner = build_learner(run, groups, plugins, checkpoint)
            with session_of(run, learner, loader, plugins, folder) as session:
                if saved is not None:
                    with ranks.doing("resuming"):
                        session.restore(saved)
                step = session.guarded(build_step(run, learner, plugins))
                stages.describe(folder, config, made)
                trackers = plugins.trackers if ranks.main else {}
                reason = partial(why_still, run)
                report.start(trackers, step=run.progress.step, total=run.total_steps, ranks=ranks.data, reason=reason)
                session.measure_start(run.ask)
                listening.defer(session.moved, session.is_saved)
                with ranks.doing("training"):
                    outcome = train(run, step, iter(loader), session.announce())
                session.finish(outcome)
                stages.export(session, outcome, encoded[0])
                session.require_saved()
    return outcome
