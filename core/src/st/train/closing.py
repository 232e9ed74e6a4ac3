"""Around the loop: a session is opened, and closed in one order however the run ends."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from st.errors import Interrupted
from st.progress import Outcome
from st.train.saving.saver import Saver
from st.train.session import Session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from st.data.feed.loader import Loader
    from st.plugins.activation import Plugins
    from st.train.learning.learners import Updater
    from st.train.parts.run import Run
    from st.train.saving.output import OutputFolder


@contextmanager
def session(run: Run, learner: Updater, loader: Loader, plugins: Plugins, folder: OutputFolder) -> Iterator[Session]:
    """The session around the loop. Plugins are told how the run ended, exactly once, also after an error."""
    one: Session
    saver = Saver(folder.vault, run.config.checkpoint, run.report, lambda saved: one.announce_saved(saved))
    one = Session(run, learner, loader, plugins, folder, saver)
    if run.ranks.main:
        folder.vault.sweep()
    outcome = Outcome.FAILED
    try:
        yield one
        outcome = one.outcome
    except Interrupted:
        outcome = Outcome.INTERRUPTED
        raise
    except Exception as error:
        one.rescue(error)
        raise
    finally:
        loader.close()
        saver.close()
        for name, call in plugins.calls("st_run_end", run=run, outcome=outcome):
            one.told(name, "st_run_end", call)
        run.jobs.drain()
    run.report.finish(outcome)
