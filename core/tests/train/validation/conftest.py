"""A run of TinyFamily with a LoRA that has learned something, without anything on disk but what it renders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from st.diffusion.objective import Objective
from st.model.adapters.lora import LoraAdapter, LoraOptions
from st.progress import Outcome
from st.randomness import Draws
from st.report.report import Report, ReportOptions
from st.report.tracker import RunInfo
from st.testing.subjects.tiny import TinyFamily
from st.train.beside.jobs import Jobs
from st.train.parts.run import Run
from st.train.ranks.ranks import Single

CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    family = TinyFamily.tiny(tmp_path / "checkpoint")
    denoiser = family.load_denoiser(CPU, torch.float32)
    denoiser.requires_grad_(False)
    adapter = LoraAdapter(LoraOptions(rank=2, dropout=0.5))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        adapter.attach(denoiser, family.adapter_targets())
        with torch.no_grad():
            for parameter in denoiser.parameters():
                if parameter.requires_grad:
                    parameter.normal_(std=0.1)
    denoiser.train()
    directory = tmp_path / "run"
    plain: Any = None
    assembled = Run(
        config=plain,
        directory=directory,
        family=family,
        denoiser=denoiser,
        blocks=(),
        num_blocks=0,
        adapter=adapter,
        objective=Objective(family.path, family.target, plain, plain, plain),
        ranks=Single(CPU),
        device=CPU,
        report=Report.open(RunInfo("test", directory, {}), ReportOptions(console="off"), {}),
        draws=lambda batch: Draws(0, batch.indices, CPU),
        total_steps=10,
        jobs=Jobs(print),
    )
    # Its weights are those of a run that has begun.
    assembled.progress.step = 3
    yield assembled
    assembled.report.finish(Outcome.FINISHED)
