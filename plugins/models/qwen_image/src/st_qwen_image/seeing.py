"""EditText: the text encoder of the pipelines that edit, shown the references as large as they show them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from st.model.pipelines.seeing_text import SeeingText

if TYPE_CHECKING:
    from st.model.checkpoint.checkpoint_folder import CheckpointFolder
    from st.model.pipelines.pipeline_text import Prompting

EDGE = 32


class EditText(SeeingText):
    """Qwen2.5-VL, looking at pictures of about ``sight`` pixels."""

    def __init__(self, folder: CheckpointFolder, prompting: Prompting, dtype: str, sight: int) -> None:
        super().__init__(folder, prompting, dtype)
        self.sight = sight

    @property
    def fingerprint(self) -> str:
        return f"{super().fingerprint}-{self.sight}"

    def looked_at(self, pipeline: Any, shown: Any) -> Any:
        width, height = about(self.sight, shown.width / shown.height)
        return pipeline.image_processor.resize(shown, height, width)


def about(pixels: int, aspect: float) -> tuple[int, int]:
    """(width, height) of a picture of about so many pixels and this width / height, edges multiples of 32."""
    width = math.sqrt(pixels * aspect)
    return round(width / EDGE) * EDGE, round(width / aspect / EDGE) * EDGE
