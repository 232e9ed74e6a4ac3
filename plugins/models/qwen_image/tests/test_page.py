"""The run files of Qwen-Image's page train on tiny checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from st.testing import RunFileTests
from st_qwen_image import QwenImage, QwenImageOptions
from st_qwen_image.tiny import write_tiny

pytestmark = [pytest.mark.alone, pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")]


class TestPage(RunFileTests):
    kind = QwenImage
    page = Path(__file__).parents[4] / "docs" / "models" / "qwen-image.md"

    def tiny(self, flavour: str, folder: Path) -> QwenImage:
        write_tiny(folder, flavour)
        return QwenImage(
            QwenImageOptions.model_validate({"flavour": flavour, "checkpoint": str(folder), "text_precision": "fp32"})
        )
