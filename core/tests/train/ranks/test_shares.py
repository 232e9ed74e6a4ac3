"""Shares of the data, where several ranks work on the same samples."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from st import Batch, Losses, Step
from st.progress import Progress
from st.report.stats import UpdateStats
from st.train.loop import Announce, train
from st.train.ranks.ranks import Single


class Pairs(Single):
    """Two ranks of each share."""

    sequence = 2

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(torch.device("cpu"))
        self.rank, self.size = rank, size


@pytest.mark.parametrize(("rank", "share"), [(0, 0), (1, 0), (2, 1), (5, 2)])
def test_neighbours_have_one_share(rank: int, share: int) -> None:
    ranks = Pairs(rank, 6)

    assert (ranks.data, ranks.share) == (3, share)


def test_without_sequence_parallel_each_rank_has_a_share() -> None:
    ranks = Single(torch.device("cpu"))

    assert (ranks.data, ranks.share, ranks.sequence) == (1, 0, 1)


def test_the_loop_counts_the_samples_of_each_share_once() -> None:
    batch = Batch(("a", "b"), (0, 1), "photos", torch.zeros(2, 1, 1, 1), {})
    step = Step(
        noise=lambda batch, draws: None,  # type: ignore[arg-type, return-value]
        predict=lambda noised, batch: torch.zeros(2),
        loss=lambda prediction, noised, batch: Losses(prediction),
        update=lambda: UpdateStats(None, ()),
        backward=lambda losses, share: None,
    )
    run: Any = SimpleNamespace(
        config=SimpleNamespace(accumulate=1),
        ranks=Pairs(0, 6),
        progress=Progress(),
        total_steps=2,
        draws=lambda _: None,
    )

    train(run, step, iter([batch] * 2), Announce(lambda stats: None, lambda: False))

    assert run.progress.samples == 2 * 2 * 3
