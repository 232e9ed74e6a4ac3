"""Pocket: a small flow-matching transformer that learns pictures from nothing on a CPU."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import model_validator

from st import BlockGroup, GeometryRule, ModelFamily, Options, StError, TokenStream
from st.diffusion.path import straight
from st.diffusion.target import clean
from st_pocket.codec import SpaceToDepth
from st_pocket.words import HashedWords

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from torch import Tensor, nn

    from st import Batch, Encoder, LatentCodec, Noised
    from st.model.files.formats import AdapterFormat

EDGE = 8
"""Pixels of the squares that become one token."""

WORD_BUDGET = 16
WORD_WIDTH = 64
TIME_SHIFT = 4.5
"""Where things are is decided while there is much noise, and is what takes longest to learn."""

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
MLP = ("ff.net.0.proj", "ff.net.2")
DENOISER = "SD3Transformer2DModel"
PLACES = 32
"""Squares along the longest picture's edge: positions are a table of PLACES x PLACES."""


@dataclass(frozen=True, slots=True)
class Size:
    """Layers, attention heads and their width; the denoiser's width is the product of the last two."""

    layers: int
    heads: int
    head_width: int


SIZES = {"tiny": Size(2, 2, 16), "small": Size(4, 4, 64)}


class PocketOptions(Options):
    """A trained denoiser, or one with random weights."""

    checkpoint: str = ""
    """Folder of a denoiser that a full training saved. Empty for random weights."""
    size: Literal["tiny", "small"] = "small"
    """Random weights: tiny (0.1 M, for tests) or small (9 M, learns a dozen subjects in minutes on two cores)."""
    seed: int = 0
    """Random weights: another seed gives other weights, the same seed the same ones."""

    @model_validator(mode="after")
    def _random_weights_only(self) -> Self:
        # Compared with the defaults, not with what was written: a saved run's settings name every option.
        moot = [name for name in ("size", "seed") if getattr(self, name) != type(self).model_fields[name].default]
        if self.checkpoint and moot:
            have, it = ("has", "it") if len(moot) == 1 else ("have", "them")
            raise ValueError(f"{' and '.join(moot)} {have} no effect on a checkpoint; delete {it}, or the checkpoint")
        return self


class Pocket(ModelFamily[PocketOptions]):
    """A small flow-matching transformer that needs no download and learns pictures from nothing on a CPU.

    Diffusers' SD3Transformer2DModel, unmodified, on the pixels themselves. It predicts the clean picture: a picture is
    simpler than noise, and a denoiser as narrow as this one can only say simple things (Li and He 2025,
    arXiv:2511.13720). The default weighting is ``inverse_square``, which scores velocities.
    """

    Options: ClassVar[type[PocketOptions]] = PocketOptions
    # The table of positions has so many places along each edge; a square of a quarter of them is trained in minutes.
    geometry = GeometryRule(multiple=2 * EDGE, max_pixels=(PLACES * EDGE) ** 2 // 4, max_edge=PLACES * EDGE)
    path = staticmethod(straight)
    target = staticmethod(clean)
    defaults = MappingProxyType(
        {
            "density": {"kind": "logit_normal", "scale": 1.5},
            # A smaller floor lets the few times with little noise drown the others.
            "weighting": {"kind": "inverse_square", "floor": 0.4},
        }
    )

    def codec(self) -> LatentCodec:
        return SpaceToDepth(EDGE)

    def text_encoders(self) -> Sequence[Encoder]:
        return (HashedWords(WORD_BUDGET, WORD_WIDTH),)

    def check_files(self) -> None:
        """Raises StError where the checkpoint is no denoiser that a full training of pocket saved."""
        folder = self.options.checkpoint
        if not folder:
            return
        fix = 'Name the model/ folder that a run with [adapter] kind = "full" wrote.'
        try:
            settings = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            why = "There is no config.json in that folder." if Path(folder).is_dir() else "There is no such folder."
            raise StError(f"model.checkpoint = {folder!r} holds no denoiser.", why=why, fix=fix) from error
        except (OSError, ValueError) as error:
            raise StError(f"model.checkpoint = {folder!r}: config.json cannot be read: {error}", fix=fix) from error
        found = settings.get("_class_name") if isinstance(settings, dict) else None
        if found != DENOISER or settings.get("in_channels") != SpaceToDepth(EDGE).depth:
            channels = "" if found != DENOISER else f" of {settings.get('in_channels')} channels"
            raise StError(
                f"model.checkpoint = {folder!r} is no denoiser of pocket.",
                why=f"It holds {found or 'no model'}{channels}.",
                fix=fix,
            )

    def load_denoiser(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        from diffusers import SD3Transformer2DModel
        from torch import nn

        self.check_files()
        folder = self.options.checkpoint
        if not folder:
            # The class's own ``to`` warns about the layers that it keeps in float32, of which there are none.
            return nn.Module.to(self._random_denoiser(), device=device, dtype=dtype).eval()
        saved: Any = SD3Transformer2DModel  # diffusers' loader is not typed
        denoiser: nn.Module = saved.from_pretrained(folder, torch_dtype=dtype, local_files_only=True)
        return denoiser.to(device).eval()

    def tokens(self, latents: Tensor) -> int:
        return latents.shape[-2] * latents.shape[-1]

    def predict(self, denoiser: nn.Module, noised: Noised, batch: Batch) -> Tensor:
        dtype = next(denoiser.parameters()).dtype
        prediction: Tensor = denoiser(
            hidden_states=noised.x.to(dtype),
            timestep=noised.t * 1000,  # the embedding's frequencies are made for 0 to 1000
            encoder_hidden_states=batch.conditions["words"].to(dtype),
            pooled_projections=batch.conditions["pooled"].to(dtype),
            return_dict=False,
        )[0]
        return prediction

    def time_shift(self, tokens: int) -> float:
        return TIME_SHIFT

    def adapter_targets(self) -> Sequence[str]:
        return (*ATTENTION, *MLP)

    def adapter_formats(self) -> Mapping[str, AdapterFormat]:
        from st.model.files.peft_layout import diffusers_format

        return {"diffusers": diffusers_format("transformer")}

    def blocks(self) -> Sequence[BlockGroup]:
        return (BlockGroup("transformer_blocks", TokenStream(returned=1)),)  # a block returns (text, picture)

    def save_checkpoint(self, denoiser: nn.Module, directory: Path) -> None:
        saved: Any = denoiser
        saved.save_pretrained(directory)

    @classmethod
    def tiny(cls, directory: Path) -> Self:
        import torch

        random = cls(PocketOptions(size="tiny"))
        random.save_checkpoint(random.load_denoiser(torch.device("cpu"), torch.float32), directory)
        return cls(PocketOptions(checkpoint=str(directory)))

    def _random_denoiser(self) -> nn.Module:
        import torch
        from diffusers import SD3Transformer2DModel

        build: Any = SD3Transformer2DModel
        size = SIZES[self.options.size]
        channels = SpaceToDepth(EDGE).depth
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.options.seed)
            denoiser: nn.Module = build(
                # Four times the table: neighbours then differ four times as much, and blocks learn to tell them apart.
                sample_size=4 * PLACES,
                patch_size=1,
                in_channels=channels,
                out_channels=channels,
                num_layers=size.layers,
                num_attention_heads=size.heads,
                attention_head_dim=size.head_width,
                joint_attention_dim=WORD_WIDTH,
                pooled_projection_dim=WORD_WIDTH,
                caption_projection_dim=size.heads * size.head_width,
                pos_embed_max_size=PLACES,
                qk_norm="rms_norm",
            )
            _begin_as_identity(denoiser)
        return denoiser


def _begin_as_identity(denoiser: nn.Module) -> None:
    """Start with blocks that pass tokens on and an answer of zero, by zero modulation. Peebles and Xie 2022,
    arXiv:2212.09748, section 3.2. It learns about a third faster than from the class's own random numbers.
    """
    from torch import nn

    for name, module in denoiser.named_modules():
        if not isinstance(module, nn.Linear) or name.startswith("time_text_embed"):
            continue
        nn.init.zeros_(module.bias)
        if name == "proj_out" or "norm" in name:
            nn.init.zeros_(module.weight)
        else:
            nn.init.xavier_uniform_(module.weight)
