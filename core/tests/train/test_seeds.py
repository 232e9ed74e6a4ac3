"""Weights that are made up depend on the run's seed alone."""

from __future__ import annotations

import random
from typing import Any

import numpy
import torch
from safetensors.torch import load_file

import st
from st.testing import TinyRunner


class Unseeded:
    """Draw random numbers before the model is loaded, as an encoder may whose answers are not cached yet."""

    class Options(st.Options):
        count: int = 0
        """How many."""

    def __init__(self, options: Options) -> None:
        self.options = options

    @st.hookimpl
    def st_report_opened(self, report: Any) -> None:
        for _ in range(self.options.count):
            random.random(), numpy.random.rand(), torch.rand(1)


def test_what_was_drawn_before_the_model_is_loaded_changes_no_weight(tiny_run: TinyRunner) -> None:
    first, second = (tiny_run([f"{__file__}:Unseeded"], f"[test_seeds]\ncount = {count}") for count in (0, 3))

    files = sorted(path.relative_to(first.directory) for path in first.directory.glob("checkpoints/**/*.safetensors"))
    assert files
    for file in files:
        ours, theirs = load_file(first.directory / file), load_file(second.directory / file)
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
