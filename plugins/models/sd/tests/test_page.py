"""The run files of the family's page train on tiny checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from st.testing import RunFileTests
from st_sd import Sd
from st_sd.flavours import FLAVOURS
from st_sd.tiny import write_tiny

pytestmark = [pytest.mark.alone, pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")]


class TestPage(RunFileTests):
    kind = Sd
    page = Path(__file__).parents[4] / "docs" / "models" / "sd.md"

    def tiny(self, flavour: str, folder: Path) -> Sd:
        write_tiny(folder, FLAVOURS[flavour or "1.5"])
        return Sd(Sd.Options(checkpoint=str(folder)))
