"""What techniques do in a whole run: weights that come and go, states that last, terms of blocks, other objectives."""

from __future__ import annotations

from pathlib import Path

import pytest

from st.testing import TinyRunner

HERE = Path(__file__).with_name("techniques")
RECOMPUTED = "[recompute]\nevery = 1\n"


def technique(name: str) -> str:
    return f"{HERE}/{name.lower()}.py:{name}"


@pytest.mark.parametrize("text", ["", RECOMPUTED], ids=["kept", "recomputed"])
def test_a_run_whose_blocks_come_and_go_ends_with_the_same_weights(tiny_run: TinyRunner, text: str) -> None:
    stays = tiny_run(text=text)

    swapped = tiny_run(plugins=[technique("Swapping")], text=text)

    assert swapped.weights() == stays.weights()


def test_two_that_place_weights_are_refused_naming_both(tiny_run: TinyRunner) -> None:
    with pytest.raises(AssertionError, match="swapping and swapping2 both place the weights of blocks"):
        copy = tiny_run.root / "swapping2.py"
        tiny_run.root.mkdir(parents=True, exist_ok=True)
        copy.write_text((HERE / "swapping.py").read_text())
        tiny_run(plugins=[technique("Swapping"), f"{copy}:Twice"])


def test_an_engine_that_splits_weights_refuses_a_placement(tiny_run: TinyRunner) -> None:
    with pytest.raises(AssertionError, match=r"swapping does not go with ranks\.engine = 'fsdp'"):
        tiny_run(plugins=[technique("Swapping")], text='[ranks]\nengine = "fsdp"\n')


def test_a_scope_lasts_through_recomputation(tiny_run: TinyRunner) -> None:
    kept = tiny_run(plugins=[technique("Strengths")])

    recomputed = tiny_run(plugins=[technique("Strengths")], text=RECOMPUTED)

    assert recomputed.weights() == kept.weights() != tiny_run().weights()


def test_a_loss_of_what_is_inside_of_blocks_is_learnt(tiny_run: TinyRunner) -> None:
    kept = tiny_run(plugins=[technique("Gates")])

    recomputed = tiny_run(plugins=[technique("Gates")], text=RECOMPUTED)

    assert recomputed.weights() == kept.weights() != tiny_run().weights()
    assert len(recomputed.metrics()["term/gates"]) == 3


def test_plugins_change_the_objective(tiny_run: TinyRunner) -> None:
    halved = tiny_run(plugins=[technique("Halves")])

    assert halved.weights() != tiny_run().weights()
    with pytest.raises(AssertionError, match="halves and whole both replace the density of the objective"):
        copy = tiny_run.root / "whole.py"
        copy.write_text((HERE / "halves.py").read_text())
        tiny_run(plugins=[technique("Halves"), f"{copy}:Whole"])
