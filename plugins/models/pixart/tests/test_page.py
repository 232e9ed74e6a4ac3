"""The run files of the family's page train on tiny checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from st.testing import RunFileTests
from st_pixart import PixArt

pytestmark = [
    pytest.mark.alone,
    pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*", "ignore::FutureWarning:diffusers.*"),
]


class TestPage(RunFileTests):
    kind = PixArt
    page = Path(__file__).parents[4] / "docs" / "models" / "pixart.md"

    def tiny(self, flavour: str, folder: Path) -> PixArt:
        made = PixArt.tiny(folder).options
        # Experts draw together with one that is here too.
        partner = {"partner": str(folder)} if flavour.endswith(("first", "second")) else {}
        given = {"flavour": flavour or "600M-1024", "checkpoint": str(folder), "max_tokens": made.max_tokens}
        return PixArt(PixArt.Options.model_validate(given | partner))
