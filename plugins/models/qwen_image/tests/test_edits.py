"""The flavours that edit are held to their pipelines: what the text encoder sees, and references as further tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from st import Input
from st.model.pipelines.packing import unpack
from st.model.pipelines.pipeline_text import load_pipeline
from st.testing import PipelineFamilyTests, not_applicable
from st.testing.examples import encoded
from st_qwen_image import QwenImage, QwenImageOptions
from st_qwen_image.tiny import write_tiny

CPU = torch.device("cpu")
pytestmark = [pytest.mark.alone, pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")]


class Edits(PipelineFamilyTests):
    __test__ = False
    flavour = "edit-2509"
    count = 2
    test_a_preview_is_the_pipelines = not_applicable("previews with references are drawn by the core's sampler")
    test_a_preview_is_guided_by_a_negative_of_another_length = not_applicable("it draws nothing without a reference")

    @pytest.fixture
    def family(self, tmp_path: Path) -> QwenImage:
        write_tiny(tmp_path / "tiny", self.flavour)
        return QwenImage(
            QwenImageOptions(flavour=self.flavour, checkpoint=str(tmp_path / "tiny"), text_precision="fp32")  # type: ignore[arg-type]
        )

    @pytest.fixture
    def upstream(self, family: QwenImage, denoiser: nn.Module) -> Any:
        # Upstream's own loading of the processor needs torchvision, for videos.
        parts = [name for name in family.folder.components() if name != family.denoiser]
        pipeline = load_pipeline(family._pipeline_class(), family.folder, parts, torch.float32)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.register_modules(transformer=denoiser)
        return pipeline

    def ours(self, latents: Tensor) -> Tensor:
        return unpack(latents, self.size.height // 8, self.size.width // 8)

    def pictures(self) -> list[Image.Image]:
        """As large as the pipeline makes every reference."""
        draw = np.random.default_rng(0)
        small = [draw.integers(0, 256, (16, 16, 3), dtype=np.uint8) for _ in range(self.count)]
        return [Image.fromarray(one).resize((1024, 1024)) for one in small]

    def call(self, family: Any) -> Mapping[str, Any]:
        shown = self.pictures()
        return {**super().call(family), "image": shown if self.count > 1 else shown[0]}

    def pixels(self) -> list[Tensor]:
        return [torch.from_numpy(np.array(one)).permute(2, 0, 1).float() / 255 for one in self.pictures()]

    def extras(self, family: Any) -> Mapping[str, Tensor]:
        found = {}
        for number, pixels in enumerate(self.pixels()):
            (entry,) = encoded(family.codec(), [Input(key="a", pixels=pixels)], CPU)
            found[f"reference{number or ''}"] = entry["latents"][None]
        return found

    def told(self, family: Any) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        (encoder,) = family.text_encoders()
        shown = tuple(self.pixels())
        wanted, against = (
            family.collate(encoded(encoder, [Input(key="a", caption=text, references=shown)], CPU))
            for text in (self.wanted, self.against)
        )
        return wanted, against


class TestEditsSeveral(Edits):
    __test__ = True


class TestEditsOne(Edits):
    __test__ = True
    flavour = "edit"
    count = 1


class TestEditsWithReferencesAtTimeZero(Edits):
    __test__ = True
    flavour = "edit-2511"
