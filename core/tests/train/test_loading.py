"""Where a denoiser lies once it is loaded."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from st.model.adapters.lora import LoraAdapter, LoraOptions
from st.testing.subjects.tiny import TinyFamily
from st.train.assembly import load_denoiser


@pytest.mark.parametrize(("on_host", "lies"), [(True, "cpu"), (False, "meta")])
def test_what_an_engine_takes_from_the_host_never_lies_whole_on_the_device(tmp_path: Path, on_host, lies) -> None:
    config: Any = SimpleNamespace(precision="fp32", quantizer=None)
    report: Any = None
    family, adapter = TinyFamily.tiny(tmp_path / "tiny"), LoraAdapter(LoraOptions())

    denoiser = load_denoiser(config, family, adapter, torch.device("meta"), report, on_host=on_host)

    assert {parameter.device.type for parameter in denoiser.parameters()} == {lies}
