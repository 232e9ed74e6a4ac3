"""Flux.2 passes what every model family passes, and is held to its pipelines."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor

from st.testing import PipelineFamilyTests, not_applicable
from st_flux2 import Flux2


class Held(PipelineFamilyTests):
    __test__ = False
    test_times_are_shifted_as_the_pipeline_shifts_them = not_applicable(
        "the pipeline's shift depends on the count of steps: test_parity.py"
    )

    def ours(self, latents: Tensor) -> Tensor:
        return latents.transpose(1, 2).unflatten(2, (self.size.height // 16, self.size.width // 16))


class TestKlein(Held):
    __test__ = True
    against = ""  # the pipeline's own negative, of which it takes no other in words

    @pytest.fixture
    def family(self, tmp_path: Path) -> Flux2:
        return Flux2.tiny(tmp_path / "tiny")


@pytest.mark.alone
class TestDistilledKlein(Held):
    __test__ = True
    strengths = (1.0, 3.0)

    @pytest.fixture
    def family(self, tmp_path: Path) -> Flux2:
        return Flux2.tiny(tmp_path / "tiny", "klein-4b")

    def combined(self, wanted: Tensor, against: Tensor, strength: float) -> Tensor:
        return wanted


@pytest.mark.alone
class TestDev(Held):
    __test__ = True
    # A distilled model is told a strength: test_parity.py.
    strengths = (1.0,)

    @pytest.fixture
    def family(self, tmp_path: Path) -> Flux2:
        return Flux2.tiny(tmp_path / "tiny", "dev")
