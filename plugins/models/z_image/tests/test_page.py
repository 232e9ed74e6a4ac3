"""The run files of the family's page train."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from st.model.adapters.lora import LoraAdapter, LoraOptions
from st.testing import RunFileTests
from st_z_image import ZImage

pytestmark = [pytest.mark.alone, pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")]


class TestPage(RunFileTests):
    kind = ZImage
    page = Path(__file__).parents[4] / "docs" / "models" / "z-image.md"

    def tiny(self, flavour: str, folder: Path) -> ZImage:
        family = ZImage.tiny(folder, "omni" if flavour == "omni" else "base")
        if flavour != "turbo":
            return family
        denoiser = family.load_denoiser(torch.device("cpu"), torch.float32)
        adapter = LoraAdapter(LoraOptions(rank=2))
        adapter.attach(denoiser, family.adapter_targets())
        assistant = adapter.export(family, denoiser, folder.with_name("assistant"), {})
        return ZImage(family.options.model_copy(update={"assistant": str(assistant)}))
