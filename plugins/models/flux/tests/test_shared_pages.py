"""Weights that are used as the file has them are pages of the file, which all processes of a machine share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from st_flux import Flux


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc where a weight lies")
def test_weights_in_the_dtype_of_the_file_take_no_memory_of_their_own(tmp_path: Path) -> None:
    denoiser = Flux.tiny(tmp_path / "tiny").load_denoiser(torch.device("cpu"), torch.float32)

    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    ranges = [line.split()[0].split("-") for line in lines if str(tmp_path) in line and ".safetensors" in line]
    pages = [range(int(first, 16), int(last, 16)) for first, last in ranges]
    assert [
        name for name, one in denoiser.named_parameters() if not any(one.data_ptr() in range_ for range_ in pages)
    ] == []
