"""What learns in a run: the first, whose weights are the adapter's, and further learners, each by its own losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from st.errors import StError
from st.model.adapters.adapter import restore
from st.registrar import Choice
from st.report.stats import UpdateStats
from st.train.learning.networks import whole
from st.train.saving.state import read_state, snapshot
from st.train.updates.groups import settings_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from st.diffusion.objective import Losses
    from st.plugins.activation import Plugins
    from st.train.parts.learner import Learner
    from st.train.parts.run import Run
    from st.train.ranks.gradients import ClipOptions
    from st.train.ranks.ranks import Ranks
    from st.train.updates.average import Average
    from st.train.updates.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Further:
    """A learner that is ready to learn."""

    learner: Learner
    parameters: tuple[Tensor, ...]
    optimizer: Optimizer
    schedule: Schedule
    clip: ClipOptions
    settings: list[dict[str, Any]]
    """Those of the optimizer's groups, as they were built."""

    def update(self, run: Run) -> UpdateStats:
        """One optimizer step of it."""
        rates = self.schedule.set(run.progress.step)
        norms = run.ranks.step(self.optimizer, self.parameters, self.clip)
        names: dict[Tensor, str] = {one: name for name, one in self.learner.module.named_parameters()}

        def broken() -> list[str]:
            return [f"{self.learner.name}: {names[parameter]}" for parameter in norms.broken()]

        return UpdateStats(norms.total, rates, broken=broken)

    def state(self, ranks: Ranks) -> dict[str, Any]:
        """What a checkpoint holds of it; whole on rank 0."""
        learnt = _learnt(self.learner.module)
        counted = {name: one for name, one in learnt.items() if not one.requires_grad}
        weights = whole({name: one for name, one in learnt.items() if name not in counted}, ranks)
        # What a module counts may change with its next call, weights with the next step only.
        return {
            "weights": {**weights, **snapshot(counted)},
            "optimizer": ranks.optimizer_state(self.optimizer),
            "settings": self.settings,
        }


def build_learners(run: Run, plugins: Plugins, checkpoint: Path | None = None) -> dict[str, Further]:
    """Ask plugins for their learners; each restored to the checkpoint's weights, shared out, with its optimizer."""
    found: dict[str, Further] = {}
    owners: dict[str, str] = {}
    for owner, answer in plugins.answers("st_learners", run=run):
        for learner in answer:
            if learner.name in owners:
                raise StError(f"{owners[learner.name]} and {owner} both bring a learner named {learner.name!r}")
            owners[learner.name] = owner
            found[learner.name] = _build(run, plugins, learner, owner, checkpoint)
    taught = {id(further.learner.module) for further in found.values()}
    for network in run.networks.values():
        if network.learns and id(network.module) not in taught:
            raise StError(f"network {network.name!r} is to learn, and no learner has it", fix="answer st_learners")
    return found


def _build(run: Run, plugins: Plugins, learner: Learner, owner: str, checkpoint: Path | None) -> Further:
    if run.config.precision == "fp16":
        raise StError(f"{owner} trains {learner.name!r} beside the denoiser, which fp16 does not allow", fix=_BF16)
    if not run.ranks.trains_several:
        raise StError(
            f"{owner} trains {learner.name!r} beside the denoiser, which this engine cannot: {run.ranks.describe()}",
            fix='set ranks.engine to "fsdp" or "ddp"',
        )
    module = learner.module.to(run.device)
    if checkpoint is not None:
        restore(_learnt(module), read_learner(checkpoint, learner.name)["weights"], f"learner {learner.name!r}")
    run.ranks.shard(module, learner.blocks)
    module.train()
    parameters = tuple(parameter for parameter in module.parameters() if parameter.requires_grad)
    if not parameters:
        raise StError(f"learner {learner.name!r} of {owner} has no weights that learn")
    chosen = _choice(plugins, "optimizer", learner.optimizer, run.config.optimizer, owner)
    schedules = _choice(plugins, "schedule", learner.schedule, run.config.schedule, owner)
    group = {"params": list(parameters), "name": learner.name}
    optimizer: Optimizer = chosen.build([group], chosen.options)
    schedule: Schedule = schedules.build(optimizer, schedules.options, run.total_steps)
    clip = learner.clip or run.config.clip
    settings = settings_of(optimizer.param_groups)
    run.ranks.adopt(module, optimizer, clip)
    count = sum(parameter.numel() for parameter in parameters)
    often = "" if learner.every == 1 else f", every {learner.every} steps"
    run.report.note(f"learner {learner.name!r}: {count:,} weights learn by {chosen.kind}{often}", kind="learner")
    return Further(learner, parameters, optimizer, schedule, clip, settings)


@dataclass(frozen=True, slots=True)
class Updater:
    """What changes the weights: everything that is trained, and what moves it. names: what each parameter is called.

    others: further learners, by name.
    """

    parameters: tuple[Tensor, ...]
    names: Mapping[Tensor, str]
    optimizer: Optimizer
    schedule: Schedule
    average: Average | None
    scaler: torch.amp.GradScaler | None
    others: Mapping[str, Further] = field(default_factory=dict)


class Together:
    """The backward and the update of a run in which several learn: each by its own losses, and by no other's."""

    def __init__(self, run: Run, first: Updater, update_first: Callable[[], UpdateStats]) -> None:
        self._run, self._first, self._update_first = run, first, update_first
        self._given: set[str | None] = set()

    def backward(self, losses: Losses, share: int) -> None:
        """Gradients of one of ``share`` microbatches, for those that step at the end of this one."""
        others = self._first.others
        unknown = losses.learners.keys() - others.keys()
        assert not unknown, f"losses for {sorted(unknown)}, and learners are {sorted(others)}"
        due = [name for name in losses.learners if others[name].learner.due(self._run.progress.step)]
        every: list[tuple[str | None, Tensor, Sequence[Tensor]]] = []
        if losses.steps:
            every.append((None, losses.total, self._first.parameters))
        every += [(name, losses.learners[name], others[name].parameters) for name in due]
        for number, (name, loss, parameters) in enumerate(every, start=1):
            self._given.add(name)
            # Losses may share a part of what was computed.
            self._run.ranks.backward(loss / share, parameters, again=number < len(every))

    def update(self) -> UpdateStats:
        """One optimizer step of each that was given a loss: all ranks give the same ones."""
        given, self._given = self._given, set()
        first = self._update_first() if None in given else UpdateStats(None, ())
        others = {name: other.update(self._run) for name, other in self._first.others.items() if name in given}
        return replace(first, others=others)


def read_learner(checkpoint: Path, name: str) -> Mapping[str, Any]:
    """The saved state of a learner. Raises StError where the checkpoint is from before there was one."""
    if not (checkpoint / "state" / f"learner-{name}.json").exists():
        raise StError(f"the checkpoint in {checkpoint} holds no learner {name!r}", fix="resume with the same plugins")
    found: Mapping[str, Any] = read_state(checkpoint / "state", f"learner-{name}")
    return found


def _learnt(module: nn.Module) -> dict[str, Tensor]:
    """Its parameters that learn, and what it counts beside (the statistics of a normalisation); not copied."""
    learns = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    frozen = {name for name, _ in module.named_parameters()} - learns
    return {name: tensor for name, tensor in module.state_dict(keep_vars=True).items() if name not in frozen}


def _choice(plugins: Plugins, kind: str, section: Mapping[str, object], own: Choice, owner: str) -> Choice:
    if not section:
        return own
    name = str(section.get("kind", own.kind))
    strategy = plugins.registrar.lookup(kind, name)
    try:
        options = strategy.options.model_validate({key: value for key, value in section.items() if key != "kind"})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise StError(f"{owner} asks for {kind} {name!r} with a wrong {where}: {first['msg']}") from error
    return Choice(name, options, strategy.build)


_BF16 = "set precision to 'bf16' or 'fp32'"
