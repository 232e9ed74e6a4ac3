"""The run files of Flux's page train on tiny checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from st.testing import RunFileTests
from st_flux import Flux

pytestmark = [pytest.mark.alone, pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")]


class TestPage(RunFileTests):
    kind = Flux
    page = Path(__file__).parents[4] / "docs" / "models" / "flux.md"
    # The published assistant is on the hub.
    smaller = ("model.assistant_strength=0",)
