"""The run files of the page train on tiny checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from st.testing import RunFileTests
from st_flux3 import Flux3

pytestmark = pytest.mark.alone


class TestPage(RunFileTests):
    kind = Flux3
    page = Path(__file__).parents[4] / "docs" / "models" / "flux3.md"

    def tiny(self, flavour: str, folder: Path) -> Flux3:
        return Flux3.tiny(folder, flavour or "klein-base")  # type: ignore[arg-type]
