"""What an optimizer could not train as it should is refused when weights are there to look at."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from st import StError
from st_optimizers import building as build
from st_optimizers import options as of


@pytest.mark.parametrize(
    ("build_it", "options"),
    [
        (build.build_adamw8bit, of.AdamW8bitOptions()),
        (build.build_lion8bit, of.Lion8bitOptions()),
        (build.build_prodigy, of.ProdigyOptions()),
        (build.build_schedule_free, of.ScheduleFreeOptions()),
        (build.build_muon, of.MuonOptions()),
        (build.build_soap, of.SoapOptions()),
    ],
)
def test_bf16_weights_that_would_lose_updates_are_refused(build_it: Any, options: Any) -> None:
    groups = [{"params": [torch.nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16))]}]

    with pytest.raises(StError, match="does not train weights that are kept in bf16"):
        build_it(groups, options)


@pytest.mark.parametrize(
    ("build_it", "options"),
    [(build.build_lion, of.LionOptions()), (build.build_stable_adamw, of.StableAdamWOptions())],
)
def test_decay_that_bf16_would_swallow_is_refused(build_it: Any, options: Any) -> None:
    groups = [{"params": [torch.nn.Parameter(torch.ones(2, 2, dtype=torch.bfloat16))]}]

    with pytest.raises(StError, match="has no effect on weights that are kept in bf16"):
        build_it(groups, options)


@pytest.mark.parametrize(
    ("build_it", "options", "instead"),
    [
        (build.build_paged_adamw, of.PagedAdamWOptions(), "adamw"),
        (build.build_paged_adamw8bit, of.AdamW8bitOptions(), "adamw8bit"),
        (build.build_paged_lion8bit, of.Lion8bitOptions(), "lion8bit"),
    ],
)
def test_paging_on_a_cpu_is_refused(build_it: Any, options: Any, instead: str) -> None:
    with pytest.raises(StError) as refused:
        build_it([{"params": [torch.nn.Parameter(torch.ones(2, 2))]}], options)

    assert f"set optimizer.kind to '{instead}'" in str(refused.value)


def test_one_step_size_for_everything_refuses_a_rate_of_a_groups_own() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "name": "head", "lr": 1e-4}]

    with pytest.raises(StError, match="cannot train 'head' with a learning rate of its own"):
        build.build_prodigy(groups, of.ProdigyOptions())


def test_muon_without_a_matrix_is_refused() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(3))]}]

    with pytest.raises(StError, match="none of what is trained is a matrix"):
        build.build_muon(groups, of.MuonOptions())
