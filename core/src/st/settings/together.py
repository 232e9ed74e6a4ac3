"""What settings that are right by themselves have against each other. Needs no torch, and loads nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from st.errors import Problem, StError
from st.model.adapters.adapter import Adapter
from st.model.adapters.references import References, references_read, unsuited
from st.model.streams import streams_of
from st.settings.splitting import splitting_problems
from st.train.updates.rounding import rounding_problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from st.model.family import ModelFamily
    from st.plugins.activation import Plugins
    from st.settings.config import RunConfig


def disagreements(config: RunConfig, plugins: Plugins) -> list[Problem]:
    """What settings that are right by themselves have against each other, and what plugins have against them."""
    found = [*_contradictions(config, plugins), *_unusable_prompts(config), *quantizer_problems(config)]
    if not found:
        adapter = config.adapter.build(config.adapter.options)
        found += adapter.problems(plugins.family)
        found += _unsuited_references(config, references_read(plugins.family, adapter))
    found += splitting_problems(config, plugins.registrar)
    if rounded := rounding_problem(config.optimizer.kind, kept_in(config)):
        found.append(rounded)
    for _, answer in plugins.answers("st_check", config=config, family=plugins.family):
        found += answer
    found += _unknown_streams(config, plugins.family)
    return found


def _unknown_streams(config: RunConfig, family: ModelFamily[Any]) -> Iterator[Problem]:
    """Weights of streams that the family does not have."""
    names = list(streams_of(family)) if config.streams.weight else []
    for name in config.streams.weight:
        if name not in names:
            fix = f"Its streams are {', '.join(map(repr, names))}." if names else "Delete the section."
            what = f"[streams] weight names {name!r}, and this model makes no such latents."
            yield Problem("streams.weight", what, fix=fix)


def _contradictions(config: RunConfig, plugins: Plugins) -> list[Problem]:
    from st.diffusion.objective import Objective

    family = plugins.family
    return Objective(
        family.path,
        family.target,
        config.density.build(config.density.options),
        config.weighting.build(config.weighting.options),
        config.distance.build(config.distance.options),
        extra_noise=config.noise,
        mask=config.mask,
    ).problems()


def _unusable_prompts(config: RunConfig) -> list[Problem]:
    from st.report.rendering.asked import prompts_to_encode

    try:
        prompts_to_encode(config.validation)
    except StError as error:
        return [Problem("validation", error.what, error.why, error.fix)]
    return []


def kept_in(config: RunConfig) -> str:
    """The precision that an adapter with an option ``dtype`` keeps its weights in; what others do is seen later."""
    dtype = str(config.adapter.options.model_dump().get("dtype", "fp32"))
    return config.precision if dtype == "precision" else dtype


def quantizer_problems(config: RunConfig) -> list[Problem]:
    """Why this run's adapter cannot learn over quantized weights. Needs no torch."""
    if config.quantizer is None:
        return []
    adapter = config.adapter.build(config.adapter.options)
    if type(adapter).disabled is not Adapter.disabled:
        return []
    what = f"[quantizer] freezes the denoiser's weights, and adapter.kind = {config.adapter.kind!r} trains them."
    why = "A quantized weight is too coarse to take the small steps of training."
    return [Problem("quantizer", what, why, 'Set adapter.kind to "lora", or leave out [quantizer].')]


def _unsuited_references(config: RunConfig, read: References | None) -> Iterator[Problem]:
    """Reference sets and validation prompts that do not suit the model; read: ``references_read``.

    Raises StError for a prompt library that cannot be used.
    """
    for place, dataset in enumerate(config.datasets):
        # Beside the sets that are named there may be a companion folder: how many are too few is known once it is read.
        number = len(dataset.options.reference_sets)
        if number and (problem := unsuited(f"data set {dataset.name!r}", number, read, f"dataset.{place}")):
            yield problem
    for prompt in config.validation.wanted() if config.validation.every else ():
        if problem := unsuited(f"prompt {prompt.name!r}", len(prompt.references), read, "validation.prompts"):
            yield problem
