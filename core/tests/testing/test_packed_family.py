"""The kit on a family that packs each sample's text before its picture, and on a wrong declaration of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from st import BlockGroup, TokenStream
from st.errors import PluginError
from st.model.inside.blocks import BlockStack
from st.testing import ModelFamilyTests, not_applicable
from st.testing.examples import awake_denoiser
from st.testing.family.blocks import BlocksTests
from st.testing.subjects.packed import PackedFamily
from st.testing.subjects.routes import Tap


class TestPackedFamily(ModelFamilyTests):
    test_matches_reference = not_applicable("it exists here only")
    test_saved_adapter_loads_in_diffusers = not_applicable("it is not a diffusers model")

    @pytest.fixture
    def family(self, tmp_path: Path) -> PackedFamily:
        return PackedFamily.tiny(tmp_path)


class Last(PackedFamily):
    """Says that the picture ends where the longest sample does."""

    def blocks(self) -> Sequence[BlockGroup]:
        (group,) = super().blocks()
        return (BlockGroup("blocks", TokenStream(place="last", count=group.stream.count)),)


def asked(tmp_path: Path) -> tuple[Any, nn.Module]:
    family = Last.tiny(tmp_path)
    return family, awake_denoiser(family)


def test_the_kit_finds_a_picture_that_is_not_last_where_captions_differ(tmp_path: Path) -> None:
    family, denoiser = asked(tmp_path)

    with pytest.raises(AssertionError, match="does not say where the picture's tokens are beside"):
        BlocksTests().test_taps_read_the_same_tokens_alone_and_batched(family, denoiser)


def test_a_stream_that_begins_elsewhere_in_each_sample_says_where(tmp_path: Path) -> None:
    denoiser = PackedFamily.tiny(tmp_path).load_denoiser(torch.device("cpu"), torch.float32)
    stream = TokenStream(place="each", count=lambda arguments: 64)

    with pytest.raises(PluginError, match="give its TokenStream starts"):
        BlockStack(denoiser, [BlockGroup("blocks", stream)], [Tap()])
