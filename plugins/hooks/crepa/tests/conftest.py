from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DINOv2 of random weights: patches of 14 pixels, features of width 12."""
    import torch
    from transformers import Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    model = Dinov2Model(
        Dinov2Config(
            hidden_size=12, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2, image_size=42, patch_size=14
        )
    )
    # Upstream draws weights so small that every feature is nearly the same.
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder
