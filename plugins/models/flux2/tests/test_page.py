"""The run files of the page train on tiny checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from st.testing import RunFileTests
from st_flux2 import Flux2

pytestmark = pytest.mark.alone


class TestPage(RunFileTests):
    kind = Flux2
    page = Path(__file__).parents[4] / "docs" / "models" / "flux2.md"

    def tiny(self, flavour: str, folder: Path) -> Flux2:
        return Flux2.tiny(folder, flavour or "klein-base-4b")  # type: ignore[arg-type]
