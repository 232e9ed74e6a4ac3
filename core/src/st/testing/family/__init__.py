"""ModelFamilyTests: what every model family promises."""

from __future__ import annotations

from st.testing.family.adapter import AdapterTests
from st.testing.family.blocks import BlocksTests
from st.testing.family.latents import LatentsTests
from st.testing.family.learning import LearningTests
from st.testing.family.parts import PartsTests
from st.testing.family.prediction import PredictionTests
from st.testing.family.rendering import RenderingTests


class ModelFamilyTests(
    PartsTests, PredictionTests, LatentsTests, RenderingTests, BlocksTests, AdapterTests, LearningTests
):
    """Subclass it beside a ``family`` fixture that answers ``Family.tiny(directory)``; nothing else is needed.

    geometries: sizes that tests run at; small ones. A ``reference`` fixture holds the family to its upstream pipeline.
    """
