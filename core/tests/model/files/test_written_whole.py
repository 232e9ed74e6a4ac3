"""A file is written where the adapter comes back from it, and a layer that nobody trained is no reason against it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from st.model.adapters.lora import LoraAdapter, LoraOptions
from st.model.files.adapter_file import write_layout
from st.model.files.formats import comfyui_format
from st.model.files.peft_layout import diffusers_format


def test_an_update_whose_terms_cancel_out_is_written(tmp_path: Path) -> None:
    """With PiSSA an untrained layer is as much as it was, less as much as it is: not zero to the last digit."""
    torch.manual_seed(0)
    denoiser = nn.Module()
    denoiser.trained, denoiser.unasked = nn.Linear(48, 32), nn.Linear(48, 32)
    adapter = LoraAdapter(LoraOptions(rank=4, init="pissa"))
    (group,) = adapter.attach(denoiser, ("trained", "unasked"))
    layer = denoiser.get_submodule("unasked")
    still = {id(parameter) for parameter in layer.parameters()}
    for parameter in group["params"]:
        if id(parameter) not in still:
            parameter.data.add_(0.1)

    for name, layout in (("a", diffusers_format()), ("b", comfyui_format())):
        write_layout(tmp_path / f"{name}.safetensors", layout, adapter.portable(denoiser), {})

    assert len(list(tmp_path.iterdir())) == 2
