"""Whether a checkpoint is one of this family, and of the flavour and prediction that were asked for."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from st import StError
from st_sdxl.table_options import SAID, TableOptions

if TYPE_CHECKING:
    from st.model.checkpoint.checkpoint_folder import CheckpointFolder
    from st_sdxl.settings import SdxlOptions

BASE_IDS, REFINER_IDS = 6, 5
"""Numbers that the U-Net is told beside the caption: six of sizes and crop, or four of them and a score."""


def check_sizes_told(folder: CheckpointFolder, options: SdxlOptions) -> None:
    """Raises StError where the U-Net is not told what SDXL's is, or as much of it as the flavour's."""
    here = _named(folder)
    components = folder.components()
    unet = folder.config("unet")
    kind = folder.index().get("_class_name", "another pipeline")
    if unet.get("addition_embed_type") != "text_time" or unet.get("encoder_hid_dim_type"):
        raise StError(
            f"{here} is not a model of this family",
            why=f"it holds a {kind} whose U-Net is not told the sizes of its pictures as SDXL's is",
            fix="name another checkpoint, or the plugin of that model's family",
        )
    check_channels(folder, "unet")
    for component in ("vae", *(name for name in ("text_encoder", "text_encoder_2") if name in components)):
        folder.config(component)
    _check_flavour(here, unet, folder.config("text_encoder_2"), options)


def check_channels(folder: CheckpointFolder, denoiser: str) -> None:
    """Raises StError where the denoiser, a component's name, reads more than latents."""
    channels = folder.config(denoiser).get("in_channels", 4)
    if channels != 4:
        raise StError(
            f"{_named(folder)} takes {channels} channels: it fills in or edits pictures",
            fix="name a checkpoint that makes pictures from text alone",
        )


def check_schedule(folder: CheckpointFolder, options: TableOptions) -> None:
    """Raises StError where the checkpoint was trained on another noise schedule, or to say something else."""
    here, scheduler = _named(folder), folder.config("scheduler")
    kind = folder.components().get("scheduler", "")
    differing = [name for name, value in options.schedule.items() if scheduler.get(name, value) != value]
    if kind.startswith(("EDM", "FlowMatch")) or differing:
        what = f"{differing[0]} = {scheduler[differing[0]]!r}" if differing else kind
        raise StError(
            f"{here} was trained on another noise schedule ({what})",
            why="this family trains on its models' own, so the model would unlearn what it knows",
            fix="name another checkpoint",
        )
    says = scheduler.get("prediction_type", "epsilon")
    if options.prediction is None and says != SAID[options.native]:
        it, other = ("v", "epsilon") if options.native == "epsilon" else ("epsilon", "v")
        raise StError(
            f"{here} predicts {says!r}, and model.prediction is not set",
            fix=f'set model.prediction to "{it}", or to "{other}" to teach it that',
        )
    if options.zero_terminal_snr and not _knows_pure_noise(kind):
        raise StError(
            f"{here} has a {kind}, which cannot begin at pure noise as model.zero_terminal_snr asks",
            fix="save the checkpoint with a DDIMScheduler: DDIMScheduler.from_config(pipeline.scheduler.config)",
        )
    if scheduler.get("rescale_betas_zero_snr") and not options.zero_terminal_snr:
        raise StError(
            f"{here} was trained on a schedule that ends in pure noise",
            fix='set model.zero_terminal_snr to true, and model.prediction to "v"',
        )


def _knows_pure_noise(kind: str) -> bool:
    import diffusers

    return "rescale_betas_zero_snr" in inspect.signature(getattr(diffusers, kind).__init__).parameters


def _named(folder: CheckpointFolder) -> str:
    return f"model.checkpoint = {folder.location!r}"


def _check_flavour(here: str, unet: Mapping[str, Any], text: Mapping[str, Any], options: SdxlOptions) -> None:
    ids = (unet["projection_class_embeddings_input_dim"] - text["projection_dim"]) // unet["addition_time_embed_dim"]
    expected = REFINER_IDS if options.is_refiner else BASE_IDS
    if ids != expected:
        is_refiner = ids == REFINER_IDS
        raise StError(
            f"{here} is a {'refiner' if is_refiner else 'base model'}, and model.flavour is {options.flavour!r}",
            fix=f'set model.flavour to "{"refiner-1.0" if is_refiner else "base-1.0"}"',
        )
