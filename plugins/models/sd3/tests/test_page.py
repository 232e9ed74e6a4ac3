"""The run files of the family's page train on tiny checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from st.testing import RunFileTests
from st_sd3 import Sd3, Sd3Options
from st_sd3.tiny import write_tiny

pytestmark = [pytest.mark.alone, pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")]


class TestPage(RunFileTests):
    kind = Sd3
    page = Path(__file__).parents[4] / "docs" / "models" / "sd3.md"

    def tiny(self, flavour: str, folder: Path) -> Sd3:
        write_tiny(folder, newer=flavour == "3.5-medium")
        return Sd3(Sd3Options(checkpoint=str(folder), max_tokens=48, text_precision="fp32"))
