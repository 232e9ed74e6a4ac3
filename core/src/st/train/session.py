"""Session: what happens around the loop: saving, restoring, measuring, and telling people."""

from __future__ import annotations

import math
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from st.errors import Blamed, OutputUnwritable, RankLost, RunFailed, StError
from st.progress import Outcome
from st.report.fanout import attempt
from st.train.finite import require_finite
from st.train.learning.learners import read_learner
from st.train.learning.networks import network_states
from st.train.loop import Announce
from st.train.measuring import Due, measures
from st.train.saving.state import read_state, snapshot
from st.train.steering import RATE, RATE_OF, Steering, headway
from st.train.updates.groups import check_saved, settings_of, use_settings
from st.train.updates.optimizer import HasEvaluationMode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from torch import Tensor
    from torch.optim import Optimizer

    from st.data.feed.loader import Loader
    from st.diffusion.objective import Batch, Noised
    from st.plugins.activation import Plugins
    from st.progress import Checkpoint
    from st.report.stats import StepStats, UpdateStats
    from st.train.learning.learners import Updater
    from st.train.parts.run import Run
    from st.train.parts.step import Step
    from st.train.saving.output import OutputFolder
    from st.train.saving.saver import Saver
    from st.train.updates.schedule import Schedule
    from st.train.validation.gallery import Gallery

    Measure = Callable[[], Mapping[str, float]]
    Predict = Callable[[Noised, Batch], Tensor]

HOOK_SECONDS = 600.0
"""How long the end of a run waits for plugins that were told of a checkpoint."""


@dataclass(slots=True)
class Session:
    """One run while it is being trained.

    measures: what is measured, and when. outcome: how the loop ended, once it has. whole: no optimizer step is half
    taken. settings: those of the optimizer's groups, as they were built.
    """

    run: Run
    learner: Updater
    loader: Loader
    plugins: Plugins
    folder: OutputFolder
    saver: Saver
    measures: list[Due] = field(default_factory=list, init=False)
    gallery: Gallery | None = field(default=None, init=False)
    outcome: Outcome = field(default=Outcome.FAILED, init=False)
    saved_at: int | None = field(default=None, init=False)
    unwritable: OutputUnwritable | None = field(default=None, init=False)
    whole: bool = field(default=True, init=False)
    settings: list[dict[str, Any]] = field(init=False)

    def __post_init__(self) -> None:
        self.settings = settings_of(self.learner.optimizer.param_groups)

    def step_end(self, stats: StepStats) -> None:
        """After each optimizer step: hooks, the report, and what is due."""
        run = self.run
        self.loader.consumed(run.progress)
        run.report.step(run.progress, stats)
        self.plugins.answers("st_step_end", run=run, stats=stats)
        if run.report.failure is not None:
            self._refuse_spoiled()
        every = run.config.checkpoint.every
        if every and run.progress.step % every == 0:
            self.save()
        self.measure()

    def announce(self) -> Announce:
        """What the loop tells this session."""
        return Announce(self.step_end, Steering(self, self.run.requests).stop_requested)

    def moved(self) -> object:
        """Changes while the run gets on; asked from another thread."""
        return headway(self)

    def is_saved(self) -> bool:
        """Whether a checkpoint of this very step is on the disk."""
        return self.run.progress.step in self.folder.vault.steps()

    def schedules(self) -> dict[str, Schedule]:
        """What sets the rates of each learner, by the name under which ``st ctl RUN set`` changes them."""
        others = {RATE_OF.format(name): other.schedule for name, other in self.learner.others.items()}
        return {RATE: self.learner.schedule, **others}

    def set_rate(self, name: str, factor: float) -> None:
        """Multiply a learner's rates from the next step on; what was saved at this step is no longer all of it."""
        self.schedules()[name].factor = factor
        self.saved_at = None

    def measure_start(self, predict: Predict) -> None:
        """Set up validation and evaluation, and measure before the first step where that was asked for."""
        self.measures = list(measures(self, predict))
        step = self.run.progress.step
        if step == 0:
            self._measure([one for one in self.measures if one.at_start])
        elif not self.run.ranks.any(self.folder.vault.measured() >= step):
            # The run was killed between this step's checkpoint and its validations.
            self.measure()

    def measure(self) -> None:
        """Run the validations that are due at this step, after its checkpoint, and keep the best.

        Those of the last step wait for ``finish``: everything is measured there, once the run is saved.
        """
        step = self.run.progress.step
        due = [one for one in self.measures if step % one.every == 0]
        if due and step != self.run.total_steps:
            self._measure(due)

    def measure_now(self) -> None:
        """Run every validation, due or not."""
        self._measure(self.measures)

    def averaged(self) -> AbstractContextManager[None]:
        """The weights to use in place of the trained ones: the moving average, or those of the optimizer, if any."""
        if self.learner.average is not None:
            return self.learner.average.in_place()
        optimizer = self.learner.optimizer
        return optimizer.evaluating() if isinstance(optimizer, HasEvaluationMode) else nullcontext()

    def guarded(self, step: Step) -> Step:
        """The same step, whose update waits until the checkpoint that is being saved is copied."""

        def update() -> UpdateStats:
            self.saver.copied()
            self.whole = False
            stats = step.update()
            self.whole = True
            return stats

        return replace(step, update=update)

    def _measure(self, due: Sequence[Due]) -> None:
        self._refuse_spoiled()
        self.saver.copied()
        step = self.run.progress.step
        found: dict[str, float] = {}
        with self.run.report.pause("validation"), self.run.ranks.doing("validating"):
            for one in due:
                metrics = one.ask(step)
                found |= metrics
                if metrics:
                    self.run.report.metrics(step, metrics)
        if self.gallery is not None:
            self.gallery.forget()
        best = self.run.config.checkpoint.best
        if due and best and step:
            self._refuse_unmeasured(best)
            # Rank 0 decides: others are given no pictures, and need not find anything.
            if self.run.ranks.any(self.run.ranks.main and best in found):
                self._keep_best(best, found.get(best, math.nan))
            elif any(one.failed and one.may_give(best) for one in due):
                self.run.report.warn(
                    f"checkpoint.best = {best!r} could not be measured at step {step}: what gives it failed, "
                    "so this step is not marked as the best, whatever it is"
                )
        if due and self.run.ranks.main:
            self.folder.vault.mark_measured(step)

    def save(self) -> None:
        """Copy and write a checkpoint in the background. Raises RunFailed rather than save spoiled weights."""
        run = self.run
        self._refuse_spoiled()
        require_finite(self.learner, run.ranks, run.progress.step)
        self.saved_at = run.progress.step
        if not (run.ranks.main or run.ranks.gathers):
            return
        with run.report.pause("save"), run.ranks.doing("saving"):
            facts = {"samples": run.progress.samples, "epoch": run.progress.epoch, "ranks": run.ranks.data}
            states = self.states()
            if run.ranks.main:
                self.saver.save(run.progress.step, states, facts)

    def _refuse_spoiled(self) -> None:
        """Raises RunFailed where a loss or a gradient of the steps so far is not finite."""
        report = self.run.report
        report.read()
        if report.failure is not None:
            # The checkpoint that is being written is the last good one.
            with suppress(OutputUnwritable):
                self.saver.wait()
            raise report.failure

    def states(self) -> dict[str, Any]:
        """Everything that a resumed run needs, by name, whole on rank 0: with any engine on any number of ranks.

        What the optimizer's step changes is not copied yet; what a technique may change at any time is.
        """
        run, learner = self.run, self.learner
        progress = run.progress
        states: dict[str, Any] = {
            "adapter": self._whole_adapter(),
            "optimizer": run.ranks.optimizer_state(learner.optimizer),
            "settings": self.settings,
            "loader": self.loader.state_dict(),
            "progress": {"step": progress.step, "samples": progress.samples, "epoch": progress.epoch},
        }
        if learner.average is not None:
            states["average"] = learner.average.state_dict()
        if isinstance(learner.optimizer, HasEvaluationMode):
            # Not read when the run goes on: a run that is opened later has no optimizer to ask for them.
            with learner.optimizer.evaluating():
                states["evaluated"] = snapshot(self._whole_adapter())
        if learner.scaler is not None:
            states["scaler"] = learner.scaler.state_dict()
        if steered := {name: one.factor for name, one in self.schedules().items() if one.factor != 1}:
            states["steered"] = steered
        for name, other in learner.others.items():
            states[f"learner-{name}"] = other.state(run.ranks)
        states |= snapshot(network_states(run.networks.values(), run.ranks))
        for name, plugin in self.plugins.stateful():
            with Blamed(f"plugin {name!r} failed in state_dict"):
                states[f"plugin-{name}"] = snapshot(plugin.state_dict())
        return states

    def restore(self, step: int) -> None:
        """Go on from a checkpoint, whose adapter has been loaded before its weights were shared out."""
        directory = self.folder.vault.path(step) / "state"
        run, learner = self.run, self.learner
        # Loading may have made new dictionaries.
        self._restore_optimizer(learner.optimizer, read_state(directory, "optimizer"))
        use_settings(learner.optimizer.param_groups, self.settings, read_state(directory, "settings"))
        for name, other in learner.others.items():
            saved = read_learner(self.folder.vault.path(step), name)
            self._restore_optimizer(other.optimizer, saved["optimizer"])
            use_settings(other.optimizer.param_groups, other.settings, saved["settings"])
        progress = read_state(directory, "progress")
        run.progress.step, run.progress.samples = progress["step"], progress["samples"]
        run.progress.epoch = progress["epoch"]
        self.loader.load_state_dict(read_state(directory, "loader"))
        if learner.average is not None:
            learner.average.load_state_dict(_optional(directory, "average", "average"))
        if learner.scaler is not None:
            learner.scaler.load_state_dict(_optional(directory, "scaler", "precision"))
        for name, plugin in self.plugins.stateful():
            # A tracker may join a run at any time; others must have been there.
            if name in self.plugins.trackers and not (directory / f"plugin-{name}.json").exists():
                continue
            with Blamed(f"plugin {name!r} failed in load_state_dict"):
                plugin.load_state_dict(_optional(directory, f"plugin-{name}", "plugins"))
        if (directory / "steered.json").exists():
            steered, schedules = read_state(directory, "steered"), self.schedules()
            for name in sorted(schedules.keys() & steered.keys()):
                schedules[name].factor = float(steered[name])
                run.report.note(f"{name} is {schedules[name].factor:g} times its own, as was asked before")
        self.saved_at = run.progress.step
        run.report.note(f"resumed at step {step}", kind="resumed", step=step)

    def _restore_optimizer(self, optimizer: Optimizer, saved: Mapping[str, Any]) -> None:
        check_saved(saved, self.run.ranks.groups(optimizer))
        self.run.ranks.load_optimizer_state(optimizer, saved)

    def _whole_adapter(self) -> dict[str, Tensor]:
        ranks, state = self.run.ranks, self.run.adapter.state(self.run.denoiser)
        return {name: ranks.gather(ranks.part(tensor), tensor) for name, tensor in state.items()}

    def announce_saved(self, checkpoint: Checkpoint) -> None:
        """Tell plugins that a checkpoint is complete, each on a thread of its own; called from the one that wrote."""
        for name, call in self.plugins.calls("st_checkpoint_saved", run=self.run, checkpoint=checkpoint):
            what = f"st_checkpoint_saved of plugin {name!r} for step {checkpoint.step}"
            self.run.jobs.submit(what, call, lane=f"plugin {name}", attempts=1, drain_seconds=HOOK_SECONDS)

    def announce_exported(self, files: Sequence[Path]) -> None:
        """Tell plugins what was written for other programs. One that raises is named, and harms nothing."""
        for name, call in self.plugins.calls("st_exported", run=self.run, files=files):
            self.told(name, "st_exported", call)

    def told(self, name: str, hook: str, call: Callable[[], object]) -> None:
        """Make a plugin's call of a hook that the run does not depend on."""
        _, error = attempt(call)
        if error is not None:
            self.run.report.note(
                f"plugin {name!r} failed in {hook}: {type(error).__name__}: {error}", kind="error", plugin=name
            )

    def finish(self, outcome: Outcome) -> None:
        """The last checkpoint, and for a finished run the last measurement."""
        self.outcome = outcome
        try:
            if self.saved_at != self.run.progress.step:
                self.save()
            if outcome is Outcome.FINISHED:
                self._measure([one for one in self.measures if one.measured_at != self.run.progress.step])
            self.saver.wait()
        except OutputUnwritable as error:
            # What was learned is still in memory, and is exported.
            self.unwritable = error
        self.run.ranks.barrier("the last checkpoint")

    def rescue(self, error: Exception) -> None:
        """After an error that has nothing to do with what was learned, save it: only where no other rank is needed."""
        known = isinstance(error, (RunFailed, OutputUnwritable, RankLost))
        if known or not self.whole or self.run.ranks.size > 1 or self.saved_at == self.run.progress.step:
            return
        try:
            self.save()
            self.saver.wait()
        except StError as further:
            self.run.report.warn(f"step {self.run.progress.step} could not be saved after the error: {further}")

    def require_saved(self) -> None:
        """Raises OutputUnwritable, on every rank, where the last checkpoint of the run could not be written."""
        run = self.run
        if run.ranks.any(run.ranks.main and not self.is_saved()):
            step = run.progress.step
            raise self.unwritable or OutputUnwritable(
                f"the last checkpoint, of step {step}, could not be written",
                fix=f"make room on the disk of {self.folder.vault.directory}, then go on with --resume",
            )

    def _refuse_unmeasured(self, metric: str) -> None:
        """Raises StError, on every rank, for a metric that nothing that is measured gives, or may give yet."""
        ranks = self.run.ranks
        if ranks.any(ranks.main and not any(one.may_give(metric) for one in self.measures)):
            known = sorted({name for one in self.measures for name in one.metrics})
            listed = ", ".join(known) or "nothing was measured"
            raise StError(f"checkpoint.best = {metric!r} is not measured", why=f"measured: {listed}")

    def _keep_best(self, metric: str, value: float) -> None:
        best = self.folder.vault.best()
        lowest = self.run.config.checkpoint.best_is == "lowest"
        better = math.isfinite(value) and (best is None or (value < best[1] if lowest else value > best[1]))
        # Rank 0 decides for all: another could see the file that it writes next.
        if not self.run.ranks.any(better and self.run.ranks.main):
            return
        step = self.run.progress.step
        if self.saved_at != step:
            self.save()
        self.saver.wait()
        if self.run.ranks.main and step in self.folder.vault.steps():
            self.folder.vault.mark_best(step, metric, value)
            self.run.report.note(
                f"best {metric} so far: {value:.5g} at step {step}", kind="best", step=step, value=value
            )


def _optional(directory: Path, name: str, setting: str) -> Any:
    """State that exists only if it was asked for when the checkpoint was written."""
    if not (directory / f"{name}.json").exists():
        raise StError(
            f"the checkpoint in {directory.parent} has no {name!r} state",
            why=f"it was written without {setting}",
            fix=f"resume with {setting} as it was, or start a new run",
        )
    return read_state(directory, name)
