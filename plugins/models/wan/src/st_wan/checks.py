"""Checks: what of a run, a checkpoint or its prompts does not suit a flavour."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from st import Problem, StError
from st.data.source.folder import FolderOptions

if TYPE_CHECKING:
    from st import Run
    from st.model.checkpoint.checkpoint_folder import CheckpointFolder
    from st.settings.config import RunConfig
    from st_wan.flavours import WanOptions


def picture_problems(config: RunConfig, options: WanOptions) -> Iterator[Problem]:
    """Prompts without the reference that they need, and references where clips bring their own. Needs no torch."""
    try:
        prompts = config.validation.wanted() if config.validation.every else ()
    except StError:  # prompts that cannot be used are a problem of their own
        prompts = ()
    bare = [prompt.name for prompt in prompts if not prompt.references]
    if options.needs_picture and bare:
        yield Problem(
            "validation.prompts",
            f"{len(bare)} prompts have no picture, such as {bare[0]!r}.",
            why=f"A clip of {options.flavour} begins with one.",
            fix='Write prompts as tables: {prompt = "...", references = ["first.png"]}.',
        )
    controlled = options.published.given == "control" and not options.starts
    if controlled and 0 < len(bare) < len(prompts):
        what = f"{len(bare)} of {len(prompts)} prompts have no reference, such as {bare[0]!r}."
        yield Problem("validation.prompts", what, why="VACE is controlled in all previews, or in none.")
    for number, dataset in enumerate(config.datasets):
        beside = isinstance(dataset.backend, FolderOptions) and dataset.backend.references
        if (dataset.options.reference_sets or beside) and not controlled:
            what = f"data set {dataset.name!r} has references, and this model is given the clip's own first frame."
            yield Problem(f"dataset.{number}", what, fix="Take reference_sets and references out.")


def refuse_others(denoiser: Any, folder: CheckpointFolder, options: WanOptions) -> None:
    """Raises StError where a checkpoint is of another flavour."""
    config, index, one = denoiser.config, folder.index(), options.published
    channels = int(folder.config("vae")["z_dim"])
    wanted = 2 * channels + 4 if one.given == "padded" else channels
    facts = (
        ("channels that its denoiser takes", config["in_channels"], wanted),
        ("it sees pictures", config["image_dim"] is not None, one.sees),
        ("it is two experts", index.get("boundary_ratio") is not None, one.experts),
        ("tokens have times of their own", bool(index.get("expand_timesteps")), one.given == "first"),
    )
    for what, found, expected in facts:
        if found != expected:
            raise StError(
                f"model.checkpoint = {options.checkpoint!r} is not a {options.flavour}",
                why=f"{what}: {found}; of that flavour: {expected}",
                fix="set model.flavour to the one that it comes from",
            )


def refuse_shared_out(run: Run) -> None:
    """Raises StError where every rank must take part in every block: samples of one step ask different experts."""
    from torch.distributed.tensor import DTensor

    if run.ranks.size > 1 and any(isinstance(one, DTensor) for one in run.denoiser.parameters()):
        raise StError(
            "both experts cannot learn while their weights are shared out over ranks",
            why="a rank whose samples ask one expert would wait for a rank whose samples ask the other",
            fix='set model.experts to "high" or "low", or ranks.engine to "ddp"',
        )
