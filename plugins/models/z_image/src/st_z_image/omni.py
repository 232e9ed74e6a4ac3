"""Omni: Z-Image that is shown pictures, by what SigLIP 2 sees of them and by latents beside the noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from st.model.adapters.references import shown_latents
from st.model.pipelines.packing import token_count
from st.model.pipelines.pipeline_text import PipelineText

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from st import Batch, Input, Noised
    from st.data.encoder import Encode, Reads

TEXT, PARTS, SEEN, SIZES = "prompt_embeds", "prompt_parts", "siglip", "siglip_sizes"
MULTIPLE = 32
"""The denoiser fills every text and every picture up to a multiple of so many tokens."""


class OmniText(PipelineText):
    """Captions in pieces, between which the pictures belong, and what the second encoder sees of each picture.

    An entry has ``prompt_embeds`` (T, D), the pieces one behind another, and ``prompt_parts`` (P,), how long each is;
    with references also ``siglip`` (N, C), the places of all pictures row by row, and ``siglip_sizes`` (R, 2), their
    rows and columns.
    """

    reads: tuple[Reads, ...] = ("caption", "references")

    @contextmanager
    def open(self, device: torch.device) -> Iterator[Encode]:
        import torch

        pipeline = self._load(device)

        def one(item: Input) -> dict[str, Tensor]:
            shown = [_picture(pixels) for pixels in item.references]
            asked = {**self._arguments(), "device": device, "num_condition_images": len(shown)}
            with torch.no_grad():
                (pieces,), _ = pipeline.encode_prompt(prompt=[item.caption or ""], **asked)
                (seen,) = pipeline.prepare_siglip_embeds(shown, 1, device, pieces[0].dtype)
            entry = {TEXT: torch.cat(pieces), PARTS: torch.tensor([len(piece) for piece in pieces])}
            if seen:
                entry[SEEN] = torch.cat([grid.flatten(0, 1) for grid in seen])
                entry[SIZES] = torch.tensor([grid.shape[:2] for grid in seen])
            return {name: tensor.detach().to("cpu", copy=True) for name, tensor in entry.items()}

        def encode(inputs: Sequence[Input]) -> list[Mapping[str, Tensor]]:
            return [one(item) for item in inputs]

        yield encode


def answer(denoiser: nn.Module, noised: Noised, batch: Batch, dtype: torch.dtype) -> Tensor:
    """What the denoiser answers, like noised.x: clean - noise. References come first, and are clean."""
    import torch

    shown = [one.to(dtype) for one in shown_latents(batch.extras)]
    pictures = [[one[row].unsqueeze(1) for one in (*shown, noised.x.to(dtype))] for row in range(len(noised.x))]
    answers: list[Tensor] = denoiser(
        x=pictures,
        t=1 - noised.t,
        cap_feats=pieces(batch.conditions, dtype),
        siglip_feats=_seen(batch.conditions, dtype) if shown else [None] * len(pictures),
        image_noise_mask=[[0] * len(shown) + [1]] * len(pictures),
        return_dict=False,
    )[0]
    return torch.stack(answers).squeeze(2)


def pieces(conditions: Mapping[str, Tensor], dtype: torch.dtype) -> list[list[Tensor]]:
    """The pieces (T, D) of each sample's caption."""
    rows, parts = conditions[TEXT].to(dtype), conditions[PARTS].tolist()
    return [list(row[: sum(lengths)].split(lengths)) for row, lengths in zip(rows, parts, strict=True)]


def count(arguments: Mapping[str, Any]) -> int:
    """Tokens of a picture, from what the denoiser is given."""
    return token_count(arguments["x"][0][-1])


def starts(arguments: Mapping[str, Any]) -> Tensor:
    """Where they begin: behind the pieces of the caption and the references, each filled up."""
    import torch

    before = [
        sum(_filled(len(piece)) for piece in caption) + sum(_filled(token_count(one)) for one in pictures[:-1])
        for caption, pictures in zip(arguments["cap_feats"], arguments["x"], strict=True)
    ]
    return torch.tensor(before, device=arguments["x"][0][-1].device)


def keep_rows(arguments: Mapping[str, Any], rows: Tensor) -> dict[str, Any]:
    """Rotary tables, (B, S, D), masks and what is noisy, (B, S). rows: (B, N) of each sample's own."""
    tables, mask, noisy = arguments["freqs_cis"], arguments["attn_mask"], arguments["noise_mask"]
    return {
        "freqs_cis": tables.gather(1, rows[..., None].expand(-1, -1, tables.shape[-1])),
        "attn_mask": None if mask is None else mask.gather(1, rows),
        "noise_mask": noisy.gather(1, rows),
    }


def _seen(conditions: Mapping[str, Tensor], dtype: torch.dtype) -> list[list[Tensor | None]]:
    """(rows, columns, C) of each reference, and nothing of the picture itself, for each sample."""
    found: list[list[Tensor | None]] = []
    for places, sizes in zip(conditions[SEEN].to(dtype), conditions[SIZES].tolist(), strict=True):
        lengths = [height * width for height, width in sizes]
        grids = places[: sum(lengths)].split(lengths)
        found.append([*(grid.view(*size, -1) for grid, size in zip(grids, sizes, strict=True)), None])
    return found


def _filled(length: int) -> int:
    return -(-length // MULTIPLE) * MULTIPLE


def _picture(pixels: Tensor) -> Any:
    """Pillow's picture of (3, H, W) in [0, 1]."""
    import torch
    from PIL import Image

    return Image.fromarray((pixels * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy())
