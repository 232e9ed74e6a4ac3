"""Small networks with random weights, of the classes that real families encode with, and their encoders."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from zlib import crc32

from st import Encoder, LatentCodec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from st import Input
    from st.data.encoder import Encode

VOCABULARY, BUDGET = 512, 128
WORD = re.compile(r"\w+")


def autoencoder() -> Any:
    """A KL autoencoder, 8 times smaller in each direction."""
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    widths = (16, 32, 32, 32)
    upstream: Any = AutoencoderKL
    made = upstream(
        latent_channels=16,
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        layers_per_block=1,
        norm_num_groups=8,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return made.eval().requires_grad_(False)


def language_model() -> Any:
    """A T5 encoder."""
    import torch
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=256,
        d_kv=64,
        d_ff=512,
        num_layers=4,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )
    upstream: Any = T5EncoderModel
    return upstream(config).eval().requires_grad_(False)


def tokens(captions: Sequence[str]) -> tuple[Tensor, Tensor, list[int]]:
    """(B, longest) numbers of words and a mask, and how many each caption has: the cheapest tokenizer there is."""
    import torch

    words = [WORD.findall(text)[: BUDGET - 1] for text in captions]
    rows = [[2 + crc32(word.encode()) % (VOCABULARY - 2) for word in one] + [1] for one in words]
    lengths = [len(row) for row in rows]
    longest = max(lengths)
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * length + [0] * (longest - length) for length in lengths])
    return ids, mask, lengths


class Autoencoder(LatentCodec):
    """The autoencoder as a codec: the mode of its distribution. Loaded at once, so that loading is not measured."""

    name = "vae"
    reads = ("pixels",)
    fingerprint = "benchmark-vae"

    def __init__(self) -> None:
        self.network = autoencoder()

    @contextmanager
    def open(self, device: torch.device) -> Iterator[Encode]:
        import torch

        def encode(inputs: Sequence[Input]) -> list[Mapping[str, Tensor]]:
            pixels = torch.stack([given.pixels for given in inputs if given.pixels is not None])
            return [{"latents": latents} for latents in self.network.encode(pixels * 2 - 1).latent_dist.mode()]

        yield encode

    def decoder(self, device: torch.device) -> Any:
        raise NotImplementedError


class LanguageModel(Encoder):
    """The T5 encoder: its states without padding. Loaded at once."""

    name = "t5"
    reads = ("caption",)
    fingerprint = "benchmark-t5"

    def __init__(self) -> None:
        self.network = language_model()

    @contextmanager
    def open(self, device: torch.device) -> Iterator[Encode]:
        def encode(inputs: Sequence[Input]) -> list[Mapping[str, Tensor]]:
            ids, mask, lengths = tokens([given.caption or "" for given in inputs])
            states = self.network(input_ids=ids, attention_mask=mask).last_hidden_state
            return [{"states": row[:length]} for row, length in zip(states, lengths, strict=True)]

        yield encode
