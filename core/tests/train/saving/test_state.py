"""State: a snapshot is a copy of its own, wherever it is put."""

from __future__ import annotations

import torch

from st.train.saving.state import snapshot


def test_a_snapshot_keeps_what_training_changes_later() -> None:
    state = {"weights": torch.arange(4.0), "groups": [{"lr": 0.1}, (1, torch.ones(2))]}

    taken = snapshot(state)
    state["weights"].zero_()

    assert torch.equal(taken["weights"], torch.arange(4.0))
    assert taken["groups"][0] == {"lr": 0.1}
    assert torch.equal(taken["groups"][1][1], torch.ones(2))


def test_a_snapshot_takes_the_place_of_an_earlier_one() -> None:
    earlier = snapshot({"kept": torch.zeros(4), "grown": torch.zeros(2), "rows": [torch.zeros(3)]})

    taken = snapshot({"kept": torch.ones(4), "grown": torch.ones(5), "rows": [torch.ones(3), torch.ones(3)]}, earlier)

    assert taken["kept"].data_ptr() == earlier["kept"].data_ptr()
    assert [tensor.tolist() for tensor in (taken["kept"], taken["grown"], *taken["rows"])] == [
        [1.0] * 4,
        [1.0] * 5,
        [1.0] * 3,
        [1.0] * 3,
    ]
