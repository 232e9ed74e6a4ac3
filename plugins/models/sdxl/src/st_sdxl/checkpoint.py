"""Whether a checkpoint is one of this family, and of the flavour and prediction that were asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from st import StError
from st_sdxl.settings import SCHEDULE, SdxlOptions

if TYPE_CHECKING:
    from st.model.checkpoint.checkpoint_folder import CheckpointFolder

BASE_IDS, REFINER_IDS = 6, 5
"""Numbers that the U-Net is told beside the caption: six of sizes and crop, or four of them and a score."""


def check_checkpoint(folder: CheckpointFolder, options: SdxlOptions) -> None:
    """Raises StError where the checkpoint cannot be trained with these options."""
    here = f"model.checkpoint = {options.checkpoint!r}"
    components = folder.components()
    unet = folder.config("unet")
    kind = folder.index().get("_class_name", "another pipeline")
    if unet.get("addition_embed_type") != "text_time" or unet.get("encoder_hid_dim_type"):
        raise StError(
            f"{here} is not a model of this family",
            why=f"it holds a {kind} whose U-Net is not told the sizes of its pictures as SDXL's is",
            fix="name another checkpoint, or the plugin of that model's family",
        )
    if unet.get("in_channels", 4) != 4:
        raise StError(
            f"{here} takes {unet['in_channels']} channels: it fills in or edits pictures",
            fix="name a checkpoint that makes pictures from text alone",
        )
    for component in ("vae", *(name for name in ("text_encoder", "text_encoder_2") if name in components)):
        folder.config(component)
    _check_flavour(here, unet, folder.config("text_encoder_2"), options)
    _check_schedule(here, folder.config("scheduler"), components.get("scheduler", ""), options)


def _check_flavour(here: str, unet: Mapping[str, Any], text: Mapping[str, Any], options: SdxlOptions) -> None:
    ids = (unet["projection_class_embeddings_input_dim"] - text["projection_dim"]) // unet["addition_time_embed_dim"]
    expected = REFINER_IDS if options.is_refiner else BASE_IDS
    if ids != expected:
        is_refiner = ids == REFINER_IDS
        raise StError(
            f"{here} is a {'refiner' if is_refiner else 'base model'}, and model.flavour is {options.flavour!r}",
            fix=f'set model.flavour to "{"refiner-1.0" if is_refiner else "base-1.0"}"',
        )


def _check_schedule(here: str, scheduler: Mapping[str, Any], kind: str, options: SdxlOptions) -> None:
    differing = [name for name, value in SCHEDULE.items() if scheduler.get(name, value) != value]
    if kind.startswith(("EDM", "FlowMatch")) or differing:
        what = f"{differing[0]} = {scheduler[differing[0]]!r}" if differing else kind
        raise StError(
            f"{here} was trained on another noise schedule ({what})",
            why="this family trains on SDXL's own, so the model would unlearn what it knows",
            fix="name another checkpoint",
        )
    says = scheduler.get("prediction_type", "epsilon")
    if options.prediction is None and says != "epsilon":
        raise StError(
            f"{here} predicts {says!r}, and model.prediction is not set",
            fix='set model.prediction to "v", or to "epsilon" to teach it that',
        )
    if scheduler.get("rescale_betas_zero_snr") and not options.zero_terminal_snr:
        raise StError(
            f"{here} was trained on a schedule that ends in pure noise",
            fix='set model.zero_terminal_snr to true, and model.prediction to "v"',
        )
