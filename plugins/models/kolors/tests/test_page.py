"""The run files of the family's page train on tiny checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from st.testing import RunFileTests
from st_kolors import Kolors

pytestmark = [pytest.mark.alone, pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")]


class TestPage(RunFileTests):
    kind = Kolors
    page = Path(__file__).parents[4] / "docs" / "models" / "kolors.md"
