"""Latents as tokens of 2 x 2 places."""

import torch

from st.model.pipelines.packing import pack, token_count, unpack


def test_a_token_holds_channel_by_channel_its_square() -> None:
    latents = torch.arange(32.0).reshape(1, 2, 4, 4)

    tokens = pack(latents)

    assert tokens.shape == (1, token_count(latents), 8)
    assert tokens[0, 1].tolist() == [2, 3, 6, 7, 18, 19, 22, 23]


def test_unpacked_tokens_are_the_latents() -> None:
    latents = torch.randn(2, 3, 4, 6)

    assert torch.equal(unpack(pack(latents), 4, 6), latents)
