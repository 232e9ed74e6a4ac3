"""Start: from loaded weights to a run that plugins are asked about."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch

from st.data.sets.words import Words
from st.errors import ProblemsFound, StError
from st.model.checkpoint.soundness import weights_digest
from st.randomness import Draws, keyed
from st.train.assembly import build_objective, load_denoiser
from st.train.beside.jobs import Jobs
from st.train.parts.composition import compose
from st.train.parts.run import Run
from st.train.ranks.ranks import engine_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from st.data.feed.loader import Loader
    from st.diffusion.objective import Batch
    from st.model.family import ModelFamily
    from st.model.inside.placement import Placement
    from st.plugins.activation import Plugins
    from st.report.report import Report
    from st.settings.config import RunConfig
    from st.train.beside.requests import Requests
    from st.train.ranks.ranks import Ranks


def technique_texts(config: RunConfig, plugins: Plugins) -> list[Words]:
    """What techniques have encoded by ``st_texts``, each once."""
    answers = plugins.answers("st_texts", config=config, family=plugins.family)
    return [Words(text) for text in dict.fromkeys(chain.from_iterable(answer for _, answer in answers))]


def load_model(
    config: RunConfig, plugins: Plugins, loader: Loader, ranks: Ranks, report: Report, *, requests: Requests
) -> Run:
    """The run, with its denoiser loaded, quantized and frozen; the adapter is not attached yet."""
    from st.model.inside.blocks import find_blocks

    # Encoders that ran, or did not because the cache knew their answers, leave no trace in weights that are made up.
    seed_generators(config.seed)
    family = plugins.family
    objective = build_objective(config, family, config.batch * config.accumulate * ranks.data)
    adapter = config.adapter.build(config.adapter.options)
    if problems := objective.problems():
        raise ProblemsFound(problems)
    placement = _placement(config, plugins)
    seen: list[str] = []
    with report.stage("loading the denoiser", 1) as stage:
        denoiser = load_denoiser(
            config,
            family,
            adapter,
            ranks.device,
            report,
            # Blocks belong to the placement, or to the engine that splits them.
            on_host=placement is not None or ranks.takes_from_host,
            loaded=lambda one: seen.append(weights_digest(one)),
        )
        stage.advance()
    texts = technique_texts(config, plugins)
    encoded = loader.encodings(texts) if texts else {}
    blocks = tuple(family.blocks())
    run = Run(
        config=config,
        directory=Path(config.output),
        family=family,
        denoiser=denoiser,
        blocks=blocks,
        num_blocks=len(find_blocks(denoiser, blocks)),
        adapter=adapter,
        objective=objective,
        ranks=ranks,
        device=ranks.device,
        report=report,
        draws=_draws(config.seed, ranks.device),
        total_steps=config.steps or loader.steps(config.epochs or 0),
        jobs=Jobs(lambda text: report.note(text, kind="error")),
        requests=requests,
        weights=seen[0],
        encodings={words.caption: _collated(family, one, ranks.device) for words, one in encoded.items()},
        placement=placement,
    )
    changes = plugins.functions("st_objective", run=run)
    run = replace(run, objective=compose(objective, changes))
    plugins.answers("st_denoiser_loaded", run=run)
    return run


def _collated(
    family: ModelFamily[Any], encoded: Mapping[str, torch.Tensor], device: torch.device
) -> Mapping[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in family.collate([encoded]).items()}


def _placement(config: RunConfig, plugins: Plugins) -> Placement | None:
    found = plugins.answers("st_placement", config=config, family=plugins.family)
    if not found:
        return None
    if len(found) > 1:
        names = " and ".join(name for name, _ in found)
        raise StError(f"{names} both place the weights of blocks", fix="leave one of them out of plugins")
    name, engine = found[0][0], engine_name(config.ranks)
    placement: Placement = found[0][1]
    if "splits" in plugins.registrar.lookup("engine", engine).traits:
        raise StError(
            f"{name} does not go with ranks.engine = {engine!r}",
            why="that engine splits weights, and places them itself",
            fix=f'set ranks.engine to "ddp", or leave {name} out',
        )
    if not plugins.family.blocks():
        raise StError(f"{name}: {type(plugins.family).__name__} declares no blocks that come and go")
    return placement


def _draws(seed: int, device: torch.device) -> Callable[[Batch], Draws]:
    def draws(batch: Batch) -> Draws:
        # Dropout and whatever else asks torch's own generator is keyed like every other draw, so nothing is to be
        # restored.
        _seed(keyed(seed, batch.indices[0], "torch"), device)
        return Draws(seed, batch.indices, device)

    return draws


def seed_generators(seed: int) -> None:
    """Seed every generator that libraries ask when they are told nothing: Python's, numpy's and torch's."""
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _seed(seed: int, device: torch.device) -> None:
    """Seed the generators that a step on this device asks.

    torch.manual_seed seeds every kind of accelerator; for each that is not in use it stores a formatted stack trace,
    which takes half a millisecond a step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)
    elif device.type != "cpu":
        torch.manual_seed(seed)
