"""A saved run, opened again to ask it things."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from st.errors import StError
from st.importing import quiet_libraries
from st.model.inside.blocks import find_blocks
from st.randomness import Draws
from st.report.report import Report
from st.settings.assembly import assemble_saved
from st.train.assembly import build_objective, load_denoiser
from st.train.beside.jobs import Jobs
from st.train.parts.run import Run
from st.train.ranks.ranks import Single, choose_device
from st.train.saving.output import SETTINGS
from st.train.saving.state import read_state
from st.train.saving.vault import Vault
from st.train.updates.average import Average

if TYPE_CHECKING:
    from pathlib import Path

    from st.plugins.activation import Plugins


def open_run(directory: Path, checkpoint: str = "latest", *, trust: bool = False) -> tuple[Run, Plugins]:
    """The run of an output folder with the weights of one of its checkpoints, in eval mode, on one device.

    checkpoint: "latest", "best" or a step. With a moving average, its weights; with an optimizer that has weights to
    be used, those. trust: plugins that are files are loaded too. Raises StError for a folder without a run and for a
    checkpoint that does not exist or is damaged.
    """
    quiet_libraries()
    settings = directory / SETTINGS
    if not settings.is_file():
        raise StError(f"{str(directory)!r} holds no run: there is no {SETTINGS}", fix="name the output folder of a run")
    config, plugins = assemble_saved(settings, trust=trust)
    vault = Vault(directory / "checkpoints")
    step = _step(vault, checkpoint)
    vault.verify(step)
    device = choose_device(config.device)
    family, adapter = plugins.family, config.adapter.build(config.adapter.options)
    report = Report.silent()
    denoiser = load_denoiser(config, family, adapter, device, report)
    groups = adapter.attach(denoiser, family.adapter_targets(), family.adapter_formats())
    state = vault.path(step) / "state"
    evaluated = (state / "evaluated.json").is_file()
    adapter.load(denoiser, read_state(state, "evaluated" if evaluated else "adapter"))
    if config.average is not None:
        average = Average([p for group in groups for p in group["params"]], config.average)
        average.load_state_dict(read_state(state, "average"))
        average.put_in_place()
    blocks = tuple(family.blocks())
    run = Run(
        config=replace(config, output=str(directory)),
        directory=directory,
        family=family,
        denoiser=denoiser.eval(),
        blocks=blocks,
        num_blocks=len(find_blocks(denoiser, blocks)),
        adapter=adapter,
        objective=build_objective(config, family),
        ranks=Single(device),
        device=device,
        report=report,
        draws=lambda batch: Draws(config.seed, batch.indices, device),
        total_steps=step,
        jobs=Jobs(report.warn),
    )
    run.progress.step = step
    return run, plugins


def _step(vault: Vault, checkpoint: str) -> int:
    steps = vault.steps()
    known = f"there are: {', '.join(map(str, steps))}" if steps else "it has none"
    best = vault.best() if checkpoint == "best" else None
    if checkpoint == "best" and best is None:
        raise StError(f"--checkpoint best: no best checkpoint was kept in {vault.directory}", why=known)
    chosen = best[0] if best else int(checkpoint) if checkpoint.isdigit() else steps[-1] if steps else -1
    if (checkpoint not in {"latest", "best"} and not checkpoint.isdigit()) or chosen not in steps:
        raise StError(
            f"--checkpoint {checkpoint}: {vault.directory} has no such checkpoint",
            why=known,
            fix='say "latest" or a step',
        )
    return chosen
