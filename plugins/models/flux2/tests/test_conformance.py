"""Flux.2 passes what every model family passes, and is held to its pipelines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from st.data.encoder import Input
from st.testing import PipelineFamilyTests, not_applicable
from st_flux2 import Flux2, Flux2Options

CPU = torch.device("cpu")


class Held(PipelineFamilyTests):
    __test__ = False
    test_times_are_shifted_as_the_pipeline_shifts_them = not_applicable(
        "the pipeline's shift depends on the count of steps: test_parity.py"
    )

    def ours(self, latents: Tensor) -> Tensor:
        return latents.transpose(1, 2).unflatten(2, (self.size.height // 16, self.size.width // 16))


class Unguided(Held):
    """Of models that are told a strength, or ignore it."""

    __test__ = False
    strengths = (3.0,)

    def combined(self, wanted: Tensor, against: Tensor, strength: float) -> Tensor:
        return wanted


class TestKlein(Held):
    __test__ = True
    against = ""  # the pipeline's own negative, of which it takes no other in words

    @pytest.fixture
    def family(self, tmp_path: Path) -> Flux2:
        return Flux2.tiny(tmp_path / "tiny")


@pytest.mark.alone
class TestDistilledKlein(Unguided):
    __test__ = True

    @pytest.fixture
    def family(self, tmp_path: Path) -> Flux2:
        return Flux2.tiny(tmp_path / "tiny", "klein-4b")


@pytest.mark.alone
class TestDev(Unguided):
    __test__ = True

    @pytest.fixture
    def family(self, tmp_path: Path) -> Flux2:
        options = Flux2.tiny(tmp_path / "tiny", "dev").options.model_dump(exclude_unset=True)
        return Flux2(Flux2Options(**options | {"guidance": 3.0}))


@pytest.mark.alone
class TestShownReferences(Held):
    """Two pictures of other sizes than what is drawn."""

    __test__ = True
    strengths = (1.0,)
    test_a_preview_is_the_pipelines = not_applicable("previews with references are drawn by the core's sampler")

    @pytest.fixture
    def family(self, tmp_path: Path) -> Flux2:
        return Flux2.tiny(tmp_path / "tiny")

    def pictures(self) -> list[Image.Image]:
        draw = np.random.default_rng(0)
        return [Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in ((64, 64), (80, 64))]

    def call(self, family: Any) -> Mapping[str, Any]:
        return {**super().call(family), "image": self.pictures()}

    def extras(self, family: Any) -> Mapping[str, Tensor]:
        found = {}
        for number, picture in enumerate(self.pictures()):
            pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
            with family.codec().open(CPU) as encode:
                (entry,) = encode([Input(key="a", pixels=pixels)])
            found[f"reference{number or ''}"] = entry["latents"][None]
        return found
