"""Wan passes what every model family passes, and is held to the upstream pipelines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from st import Batch, Geometry
from st.testing import ModelFamilyTests, not_applicable
from st.testing.family.adapter import AdapterTests
from st.testing.family.blocks import BlocksTests
from st.testing.family.prediction import PredictionTests
from st_wan import Wan

# diffusers warns where a tokenizer or the image encoder is left out, as it is here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")
SIZES = (Geometry(32, 64, 5), Geometry(32, 32))


def sampled(make_upstream: Callable[..., Any], family: Wan) -> Any:
    """The pipeline with the denoiser under test, from noise; each row of its own, as the pipelines of VACE want it."""

    def reference(denoiser: Any, batch: Batch, noise: Any) -> Any:
        upstream = make_upstream(family.options.flavour, transformer=denoiser)
        text = batch.conditions["prompt_embeds"]
        return upstream.latents(noise, prompt_embeds=text)

    return reference


class TestFromText(ModelFamilyTests):
    geometries = SIZES

    @pytest.fixture
    def family(self, tmp_path: Path) -> Wan:
        return Wan.tiny(tmp_path / "tiny")

    @pytest.fixture
    def reference(self, make_upstream: Callable[..., Any], family: Wan) -> Any:
        return sampled(make_upstream, family)


class TestTokenTimes(PredictionTests, BlocksTests):
    geometries = SIZES

    @pytest.fixture
    def family(self, make_family: Callable[..., Wan]) -> Wan:
        return make_family("ti2v-5b")

    @pytest.fixture
    def reference(self, make_upstream: Callable[..., Any], family: Wan) -> Any:
        return sampled(make_upstream, family)


class TestFirstFrame(PredictionTests, BlocksTests):
    """Every token has the time of its frame, which is 0 for the first."""

    geometries = SIZES
    test_matches_reference = not_applicable("test_prediction.py has the pipeline begin with a picture")

    @pytest.fixture
    def family(self, make_family: Callable[..., Wan]) -> Wan:
        return make_family("ti2v-5b", first_frame=1.0)


class TestSeen(PredictionTests, BlocksTests):
    geometries = SIZES
    test_matches_reference = not_applicable("test_prediction.py has the pipeline begin with a picture")

    @pytest.fixture
    def family(self, make_family: Callable[..., Wan]) -> Wan:
        return make_family("i2v-480p")


class TestExperts(PredictionTests, BlocksTests, AdapterTests):
    geometries = SIZES
    test_matches_reference = not_applicable("test_prediction.py has the pipeline ask both experts")
    test_dropping_no_tokens_changes_nothing = not_applicable("a sample passes through one expert's blocks only")
    test_dropped_tokens_rejoin_unchanged = not_applicable("a sample passes through one expert's blocks only")
    test_routed_tokens_have_gradients = not_applicable("a sample passes through one expert's blocks only")
    test_dropped_tokens_are_the_same_alone_and_batched = not_applicable(
        "a sample passes through one expert's blocks only"
    )
    test_saved_adapter_loads_in_diffusers = not_applicable("each expert has a file; test_formats.py loads both")

    @pytest.fixture
    def family(self, make_family: Callable[..., Wan]) -> Wan:
        return make_family("t2v-a14b")


class TestVace(PredictionTests, BlocksTests):
    geometries = SIZES
    test_matches_reference = not_applicable("the pipeline takes one clip at a time; test_prediction.py gives it one")
    test_dropping_no_tokens_changes_nothing = not_applicable("hints for every token are added between blocks")
    test_dropped_tokens_rejoin_unchanged = not_applicable("hints for every token are added between blocks")
    test_routed_tokens_have_gradients = not_applicable("hints for every token are added between blocks")
    test_dropped_tokens_are_the_same_alone_and_batched = not_applicable(
        "hints for every token are added between blocks"
    )

    @pytest.fixture
    def family(self, make_family: Callable[..., Wan]) -> Wan:
        return make_family("vace-1.3b", first_frame=1.0)
