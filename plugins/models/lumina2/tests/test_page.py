"""The run files of the family's page train."""

from __future__ import annotations

from pathlib import Path

import pytest

from st.testing import RunFileTests
from st_lumina2 import Lumina2

pytestmark = [pytest.mark.alone, pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")]


class TestPage(RunFileTests):
    kind = Lumina2
    page = Path(__file__).parents[4] / "docs" / "models" / "lumina2.md"
