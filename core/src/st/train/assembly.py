"""Assembly: from settings to a denoiser that is ready to learn, its optimizer and its step."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from st.errors import Blamed, ProblemsFound, StError
from st.model.checkpoint.soundness import require_numbers
from st.model.family import Remarks
from st.model.quantize.quantized import check_kept, quantize
from st.report.stats import UpdateStats
from st.train.learning.learners import Together, Updater, build_learners
from st.train.learning.networks import add_networks
from st.train.parts.naming import named
from st.train.parts.networks import PRECISIONS
from st.train.parts.step import Step
from st.train.saving.state import read_state
from st.train.updates.average import Average
from st.train.updates.groups import split
from st.train.updates.optimizer import HasEvaluationMode, Measured
from st.train.updates.schedule import without_effect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from st.diffusion.objective import Losses, Objective
    from st.model.adapters.adapter import Adapter
    from st.model.family import ModelFamily
    from st.model.inside.blocks import BlockMiddleware
    from st.model.quantize.quantizer import Quantizer
    from st.plugins.activation import Plugins
    from st.registrar import Choice
    from st.report.report import Report
    from st.settings.config import RunConfig
    from st.train.parts.run import Run
    from st.train.updates.schedule import Schedule

    ParamGroup = dict[str, Any]


def build_objective(config: RunConfig, family: ModelFamily[Any], samples_per_step: int = 1) -> Objective:
    """The family's path and target with the strategies that the run file names. Needs no torch."""
    from st.diffusion.objective import Objective, one_time
    from st.diffusion.shift import shift_rule
    from st.model.streams import PlacesTimes

    def build(choice: Choice) -> Any:
        return choice.build(choice.options)

    return Objective(
        path=family.path,
        target=family.target,
        density=build(config.density),
        weighting=build(config.weighting),
        distance=build(config.distance),
        shift=shift_rule(config.shift, family.tokens, family.time_shift),
        extra_noise=config.noise,
        mask=config.mask,
        positions=family.times if isinstance(family, PlacesTimes) else one_time,
        streams=config.streams,
        samples_per_step=samples_per_step,
    )


def load_denoiser(
    config: RunConfig,
    family: ModelFamily[Any],
    adapter: Adapter,
    device: torch.device,
    report: Report,
    *,
    on_host: bool = False,
    loaded: Callable[[nn.Module], object] = lambda _: None,
) -> nn.Module:
    """The denoiser in the precision that its adapter trains in, quantized where asked for, frozen.

    on_host: it stays in memory of the host, unless it is quantized: the device does that.
    loaded: is shown it before anything is done to it. Raises StError for weights that are not finite.
    """
    precision = PRECISIONS[config.precision]
    dtype = adapter.base_dtype(precision)
    if precision == torch.float32 and dtype != torch.float32:
        kept = str(dtype).removeprefix("torch.")
        raise StError(
            f"precision = 'fp32' cannot compute with weights that [adapter] keeps in {kept}",
            fix="set precision to 'bf16', or adapter.dtype to 'fp32'",
        )
    quantizer: Quantizer | None = config.quantizer.build(config.quantizer.options) if config.quantizer else None
    if quantizer is not None:
        quantizer.check(device, dtype)
    first = torch.device("cpu") if quantizer or on_host else device
    denoiser = family.load_denoiser(first, dtype).requires_grad_(False)
    require_numbers(denoiser, "[model]")
    loaded(denoiser)
    adapter.begin(family, denoiser)
    if quantizer is None:
        return denoiser
    check_kept(denoiser, quantizer.options.keep)
    done = quantize(denoiser, quantizer, device, (*family.full_precision, *quantizer.options.keep))
    done.require()
    report.note(done.sentence, kind="quantizer", kept=done.left)
    return denoiser


def prepare_denoiser(run: Run, plugins: Plugins, checkpoint: Path | None = None) -> list[ParamGroup]:
    """Attach the adapter, then middleware, compile and share out; the adapter's parameter groups.

    checkpoint: whose adapter is loaded, while weights are whole on every rank.
    """
    from st.model.inside.blocks import BlockStack, find_blocks
    from st.model.inside.claims import check_claims
    from st.model.inside.compiling import compile_blocks
    from st.model.inside.placement import settle
    from st.model.inside.recompute import Recompute

    family = run.family
    attached = run.adapter.attach(run.denoiser, family.adapter_targets(), family.adapter_formats())
    groups = [dict(group) for group in attached]
    if run.adapter.note:
        run.report.note(run.adapter.note, kind="adapter")
    if isinstance(family, Remarks):
        for remark in family.remarks():
            run.report.note(remark, kind="family")
    for caveat in run.adapter.caveats(family):
        run.report.note(caveat, kind="format")
    # Before the adapter goes on from a checkpoint: a teacher that is a copy of the denoiser is the same in every part
    # of a run.
    add_networks(run, plugins, checkpoint)
    if checkpoint is not None:
        run.adapter.load(run.denoiser, read_state(checkpoint / "state", "adapter"))
    middleware: list[tuple[str, BlockMiddleware]] = []
    for name, answer in plugins.answers("st_block_middleware", run=run):
        middleware += [(name, one) for one in (answer if isinstance(answer, (list, tuple)) else [answer])]
    if run.config.recompute.every:
        middleware.append(("recompute", Recompute(run.config.recompute)))
    if middleware and not run.blocks:
        names = ", ".join(dict.fromkeys(name for name, _ in middleware))
        raise StError(f"{names}: {type(run.family).__name__} declares no blocks that a technique could reach")
    whole = [
        index for index, (_, group) in enumerate(find_blocks(run.denoiser, run.blocks)) if not group.stream.droppable
    ]
    problems = check_claims(middleware, run.num_blocks, whole)
    if problems:
        raise ProblemsFound(problems)
    if run.placement is not None:
        settle(run.denoiser, run.blocks, run.placement, run.device)
    if run.config.compile.blocks:
        compile_blocks(run.denoiser, run.blocks, run.config.compile)
    BlockStack(run.denoiser, run.blocks, [one for _, one in middleware], run.placement, run.terms)
    run.denoiser.train()
    named = {parameter: name for name, parameter in run.denoiser.named_parameters()}
    run.ranks.shard(run.denoiser, run.blocks)
    placed = dict(run.denoiser.named_parameters())
    return [{**group, "params": [placed[named[one]] for one in group["params"]]} for group in groups]


def build_learner(run: Run, groups: Sequence[ParamGroup], plugins: Plugins, checkpoint: Path | None = None) -> Updater:
    """The optimizer over the adapter's groups and those of techniques, its schedule and the moving average.

    checkpoint: whose weights further learners take on.
    """
    config = run.config
    asked = [*groups, *_technique_groups(plugins.answers("st_parameters", run=run))]
    names = _names(run, asked)
    every, sentences = split(asked, config.groups, names, config.optimizer.options)
    for sentence in sentences:
        run.report.note(sentence, kind="group")
    optimizer: Optimizer = config.optimizer.build(every, config.optimizer.options)
    if config.average is not None and isinstance(optimizer, HasEvaluationMode):
        raise StError(
            f"[average] does not go with optimizer.kind = {config.optimizer.kind!r}",
            why="that optimizer keeps weights of its own to be used in place of the trained ones",
            fix="leave [average] out",
        )
    for sentence in without_effect(config.schedule.options, run.total_steps):
        run.report.warn(sentence)
    schedule: Schedule = config.schedule.build(optimizer, config.schedule.options, run.total_steps)
    parameters = tuple(p for group in optimizer.param_groups for p in group["params"])
    adapter_parameters = [p for group in groups for p in group["params"]]
    scaler = torch.amp.GradScaler(run.device.type) if config.precision == "fp16" else None
    run.ranks.adopt(run.denoiser, optimizer, config.clip, scaler)
    return Updater(
        parameters,
        names,
        optimizer,
        schedule,
        Average(adapter_parameters, config.average, run.ranks) if config.average is not None else None,
        scaler,
        build_learners(run, plugins, checkpoint),
    )


def _names(run: Run, groups: Iterable[ParamGroup]) -> dict[Tensor, str]:
    """What each parameter is called: as the adapter saves it, as the denoiser has it, or by its technique."""
    named: dict[Tensor, str] = {
        one: f"{group.get('name', 'weight')}.{number}" for group in groups for number, one in enumerate(group["params"])
    }
    named |= {one: name for name, one in run.denoiser.named_parameters()}
    return named | {tensor: name for name, tensor in run.adapter.state(run.denoiser).items()}


def build_step(run: Run, learner: Updater, plugins: Plugins) -> Step:
    """The plain step, folded through the wrappers of techniques: the first named is innermost."""

    def update_first() -> UpdateStats:
        return update(run, learner)

    def backward(losses: Losses, share: int) -> None:
        run.ranks.backward(losses.total / share)

    step = Step(run.objective.noise, run.ask, run.objective.loss, update_first, backward)
    if learner.others:
        together = Together(run, learner, update_first)
        step = replace(step, update=together.update, backward=together.backward)
    labels = {plugin.name: plugin.label for plugin in plugins.active}
    for name, wrap in plugins.answers("st_step", run=run):
        with Blamed(f"{labels[name]} failed in what st_step answered"):
            wrapped = wrap(step)
        step = named(step, wrapped, labels[name])
    return step


def update(run: Run, learner: Updater) -> UpdateStats:
    """One optimizer step: mean over ranks, clip, step, moving average, and the gradients are gone."""
    rates = learner.schedule.set(run.progress.step)
    norms = run.ranks.step(learner.optimizer, learner.parameters, run.config.clip)
    if learner.average is not None:
        learner.average.update(run.progress.step + 1)

    def broken() -> list[str]:
        return [learner.names[parameter] for parameter in norms.broken()]

    return UpdateStats(norms.total, rates, _measured(learner), broken, scaled=learner.scaler is not None)


def _measured(learner: Updater) -> Callable[[], Mapping[str, float]] | None:
    """Numbers of the optimizer, and of what scales losses for it."""
    optimizer, scaler = learner.optimizer, learner.scaler
    own = optimizer.metrics if isinstance(optimizer, Measured) else None
    if scaler is None:
        return own
    return lambda: {**(own() if own is not None else {}), "loss_scale": scaler.get_scale()}


def _technique_groups(answers: Iterable[tuple[str, Iterable[ParamGroup]]]) -> list[ParamGroup]:
    return [{"name": name, **group} for name, answer in answers for group in answer]
