"""Every hook, in the order in which a run calls them.

A plugin implements a hook by a method of the same name under ``@st.hookimpl``, taking any subset of its arguments.
Answers are taken in the order of the plugin list; ``None`` means "nothing from me". No hook is called inside a forward
pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path
    from typing import Any

    from st.data.dataset import DatasetConfig
    from st.data.encoder import Encoder
    from st.data.sample import Sample
    from st.diffusion.objective import Objective
    from st.errors import Problem
    from st.model.family import ModelFamily
    from st.model.inside.blocks import BlockMiddleware
    from st.model.inside.placement import Placement
    from st.progress import Checkpoint, Outcome
    from st.registrar import Registrar
    from st.report.report import Report
    from st.report.stats import StepStats
    from st.settings.config import RunConfig
    from st.train.parts.learner import Learner
    from st.train.parts.networks import Network
    from st.train.parts.run import Run
    from st.train.parts.step import StepWrapper

    ParamGroup = dict[str, Any]

hookspec = pluggy.HookspecMarker("st")
hookimpl = pluggy.HookimplMarker("st")
"""Marks a method of a plugin as a hook: ``@st.hookimpl``."""


@hookspec
def st_register(register: Registrar) -> None:
    """Add strategies that users choose by name.

    Called once, after every named plugin is imported and before the run file is checked:
    ``register.add(st.OPTIMIZER, "mine", build, Options)``. The kinds are ADAPTER, BACKEND, DENSITY, DISTANCE, ENGINE,
    FAMILY, OPTIMIZER, QUANTIZER, SAMPLER, SCHEDULE, TRACKER, UPDATE_KIND, VALIDATOR and WEIGHTING; each says how what
    is registered will be built. Two packages that claim one name stop the run. Torch must not be imported here.
    """


@hookspec
def st_check(config: RunConfig, family: ModelFamily[Any]) -> Iterable[Problem] | None:
    """Refuse settings that cannot work together.

    Called once, when the run file is valid; nothing is loaded and torch is not imported. Problems of all plugins are
    shown together. ``config.plugin(name)`` gives another active plugin's options, or None. What is asked of the family
    is known without its weights: ``options``, ``drops_tokens``.
    """


@hookspec
def st_report_opened(report: Report) -> None:
    """Hear of a run from its first stage on.

    Called once, on every rank, before data is read. ``report.listen(name, listener)`` calls the listener with each
    event of the run, as the event log has it, on a thread of its own.
    """


@hookspec
def st_sample_transform(dataset: DatasetConfig) -> Callable[[Sample], Sample | None] | None:
    """Edit or drop the samples of a data set.

    Called once per data set, before buckets are made. The returned function is asked for each sample: it returns the
    sample, a changed copy (captions, extras), or None to drop it, which the report counts. It must not depend on the
    order of calls.
    """


@hookspec
def st_encoders(config: RunConfig, family: ModelFamily[Any]) -> Sequence[Encoder] | None:
    """Compute something of every sample once, and train with it.

    Called once per command that encodes or looks after the cache, before anything is loaded. Encoders of pixels or
    sound; their outputs are cached like latents and arrive in ``batch.extras`` under the names that the encoder gives
    them, stacked over samples: their shape depends on nothing but the geometry.
    """


@hookspec
def st_texts(config: RunConfig, family: ModelFamily[Any]) -> Iterable[str] | None:
    """Have further texts encoded: the empty caption, a negative, a phrase to learn from.

    Called before anything is loaded, by every command that encodes, trains or looks after the cache; the answer depends
    on nothing but the arguments. They are cached like captions, and arrive in ``run.encodings``, by text, as conditions
    for ``run.ask``.
    """


@hookspec
def st_placement(config: RunConfig, family: ModelFamily[Any]) -> Placement | None:
    """Bring the weights of blocks in when they compute, and send them away after.

    Called once, before the denoiser is loaded, which is then loaded into memory of the host. One plugin answers; two
    stop the run, and so does an engine that splits weights.
    """


@hookspec
def st_objective(run: Run, objective: Objective) -> Objective | None:
    """Change what is asked of the denoiser and how its answer is scored: times, target, weighting, distance, noise.

    Called once, when the denoiser is loaded. Answers a changed copy (``dataclasses.replace``) of the objective, which
    plugins before have changed. A plugin that replaces what another has replaced builds on it (holds it), or the run is
    stopped, naming both; so it is where the objective contradicts itself, or the path is another.
    """


@hookspec
def st_denoiser_loaded(run: Run) -> None:
    """Change the denoiser's structure.

    Called once, when weights are loaded and quantized and before the adapter is attached: ``run.denoiser`` may be
    edited in place; ``run.adapter`` is not attached yet.
    """


@hookspec
def st_networks(run: Run) -> Iterable[Network] | None:
    """Bring networks beside the denoiser: a teacher, an average of the student, a judge of pictures.

    Called once, when the adapter is attached, and before a checkpoint is read, blocks are surrounded and sharded: a
    copy of ``run.denoiser`` is the student as it began. They are in ``run.networks``, and ``run.ask`` asks them.
    """


@hookspec
def st_block_middleware(run: Run) -> BlockMiddleware | Sequence[BlockMiddleware] | None:
    """Wrap the calls of the denoiser's blocks.

    Called once, after the adapter is attached and before blocks are compiled and sharded. ``run.blocks`` lists the
    groups and ``run.num_blocks`` counts their blocks; no middleware is installed yet. Middleware runs in every forward
    pass, validation included: check ``torch.is_grad_enabled()`` to act in training only. Contradicting claims stop the
    run.
    """


@hookspec
def st_parameters(run: Run) -> Iterable[ParamGroup] | None:
    """Train further parameters with the denoiser's adapter, by its loss and its optimizer: projection heads.

    Called once, before the optimizer is built. Answers groups as torch optimizers take them (``params``, optionally
    ``lr``, ``weight_decay``, ``name``). The plugin saves them itself: ``state_dict`` and ``load_state_dict`` on the
    plugin.
    """


@hookspec
def st_learners(run: Run) -> Iterable[Learner] | None:
    """Train something besides the denoiser's adapter, with an optimizer of its own.

    Called once, after ``st_parameters``. Each learner has a module, and learns from its loss in ``Losses.learners``
    alone. The core shards, saves and restores it, and reports ``learner/NAME/loss``, ``/lr`` and ``/grad_norm``.
    """


@hookspec
def st_step(run: Run) -> StepWrapper | None:
    """Replace a part of the training step.

    Called once, after a checkpoint is restored and before the first step. The answer takes a Step and returns one,
    usually ``dataclasses.replace(step, loss=...)``; wrappers are folded in plugin order, the first named innermost.
    """


@hookspec
def st_step_end(run: Run, stats: StepStats) -> None:
    """An optimizer step was taken.

    Called after each one, on all ranks. Tensors in ``stats`` are on the device: reading one stops the device, so do it
    rarely.
    """


@hookspec
def st_checkpoint_saved(run: Run, checkpoint: Checkpoint) -> None:
    """A checkpoint is complete on disk.

    Called on rank 0 on a thread of the plugin's own, one checkpoint after another, once the files have been renamed
    into place. Training, and the next checkpoint, do not wait: a slow answer may meet a checkpoint that is gone
    (``checkpoint.keep``). An exception is reported with the plugin's name and harms nothing.
    """


@hookspec
def st_exported(run: Run, files: Sequence[Path]) -> None:
    """What users load elsewhere is written.

    Called once on rank 0 when a run has finished, with every file of the export. ``run.jobs.submit`` does what takes
    long, such as uploads, with retries; the end of the run waits for it as long as it says. An exception is reported
    with the plugin's name and harms nothing.
    """


@hookspec
def st_run_end(run: Run, outcome: Outcome) -> None:
    """The run is over.

    Called exactly once on every rank, also after an error or Ctrl-C, when the final checkpoint and the adapter file
    exist, and before ``run.jobs`` are waited for. An exception is reported with the plugin's name.
    """
