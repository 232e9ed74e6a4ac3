"""Runs that align tokens: what they learn, what they remember, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from st import Geometry, StError
from st.model.inside.blocks import BlockStack
from st.model.inside.claims import check_claims
from st.model.inside.terms import Terms
from st.testing import (
    BlockMiddlewareTests,
    HookPluginTests,
    TinyFamily,
    TinyRun,
    TinyRunner,
    example_batch,
    example_noised,
)
from st.testing.runs import TINY
from st.testing.subjects.routes import KeepTokens
from st_crepa.tap import Tap
from st_crepa.technique import token_width

BACKBONE = '[crepa]\nfeature_source = "backbone"\nblock_index = 0\nteacher_block_index = -1\n'
CPU = torch.device("cpu")


def encoder(dino: Path, text: str = "") -> str:
    return f'[crepa]\nmodel = "{dino}"\nencoder_image_size = 42\nblock_index = 1\n{text}\n'


def projector(run: TinyRun, step: int) -> dict[str, torch.Tensor]:
    folder = run.directory / "checkpoints" / f"step-{step:08d}" / "state"
    return load_file(folder / "plugin-crepa.safetensors")


class TestPlugin(HookPluginTests):
    plugin = "crepa"
    settings = BACKBONE


class TestTap(BlockMiddlewareTests):
    @pytest.fixture
    def build(self):
        return lambda: Tap((0, 2), ("block_index", "teacher_block_index"))


@pytest.fixture
def family(tmp_path: Path) -> TinyFamily:
    return TinyFamily.tiny(tmp_path / "tiny")


def test_a_tap_gives_what_a_prediction_with_gradients_left(family: TinyFamily) -> None:
    denoiser, batch = family.load_denoiser(CPU, torch.float32), example_batch(family, Geometry(64, 64))
    noised, terms, seen = example_noised(family, batch), Terms(), []
    denoiser.blocks[1].register_forward_hook(lambda block, given, answer: seen.append(answer))

    with BlockStack(denoiser, family.blocks(), [Tap((1,), ("block_index",))], terms=terms):
        with terms.reading() as nothing, torch.no_grad():
            family.predict(denoiser, noised, batch)
        with terms.reading() as found:
            family.predict(denoiser, noised, batch)

    assert nothing == {}
    assert list(found["crepa"]) == [1]
    assert found["crepa"][1][0] is seen[1]


def test_dropping_tokens_where_they_are_read_is_refused_with_the_settings() -> None:
    route = KeepTokens(1, 6, torch.arange(4))

    (problem,) = check_claims([("crepa", Tap((4,), ("block_index",))), ("drops", route)], 9)

    assert problem.what == "crepa reads every token of block 4, but drops drops tokens in blocks 1-6."
    assert problem.fix == "Set crepa.block_index below 1 or above 6, or move the blocks of drops."
    assert check_claims([("crepa", Tap((0, 6), ("block_index",))), ("drops", route)], 9) == []


def test_the_width_of_tokens_is_that_of_most_layers(family: TinyFamily) -> None:
    assert token_width(family.load_denoiser(CPU, torch.float32).blocks[0]) == 32
    with pytest.raises(StError, match="no linear layer in a Conv2d"):
        token_width(torch.nn.Conv2d(3, 4, 1))


def test_features_are_computed_once_and_change_what_is_learnt(tiny_run: TinyRunner, dino: Path) -> None:
    plain, aligned = tiny_run(steps=4), tiny_run(plugins=["crepa"], text=encoder(dino), steps=4)

    assert len(aligned.metrics()["term/crepa"]) == 4
    assert all(-0.5 <= value <= 0.5 for value in aligned.metrics()["term/crepa"])
    assert aligned.weights().keys() == plain.weights().keys()
    assert aligned.weights() != plain.weights()
    shards = sorted((aligned.directory / "cache" / "shards").iterdir())
    tiny_run(plugins=["crepa"], text=encoder(dino), steps=6, resume=aligned)
    assert sorted((aligned.directory / "cache" / "shards").iterdir()) == shards


def test_tokens_learn_to_agree(tiny_run: TinyRunner, dino: Path) -> None:
    text = encoder(dino, "weight = 10.0") + "[optimizer]\nlr = 0.01\n"

    found = tiny_run(plugins=["crepa"], text=text, steps=30).metrics()["term/crepa"]

    assert sum(found[-5:]) < sum(found[:5]) - 10


def test_a_run_resumes_bit_for_bit_with_its_projector(tiny_run: TinyRunner, dino: Path) -> None:
    text = encoder(dino, "similarity_threshold = 0.99\nwarmup_steps = 2") + "[average]\n[recompute]\nevery = 1\n"
    straight = tiny_run(plugins=["crepa"], text=text, steps=4)
    first = tiny_run(plugins=["crepa"], text=text, steps=2)
    begun = projector(first, 2)

    resumed = tiny_run(plugins=["crepa"], text=text, steps=4, resume=first)

    assert resumed.weights() == straight.weights()
    learnt, expected = projector(resumed, 4), projector(straight, 4)
    assert [name for name in expected if not torch.equal(learnt[name], expected[name])] == []
    assert any(not torch.equal(learnt[name], begun[name]) for name in begun)
    similarities = straight.metrics()["crepa/similarity"]
    assert resumed.metrics()["crepa/similarity"][-2:] == similarities[-2:]


def test_recomputed_blocks_are_aligned_alike(tiny_run: TinyRunner) -> None:
    kept = tiny_run(plugins=["crepa"], text=BACKBONE)

    assert tiny_run(plugins=["crepa"], text=f"{BACKBONE}[recompute]\nevery = 1\n").weights() == kept.weights()


def test_microbatches_align_as_one_batch_would(tiny_run: TinyRunner, dino: Path) -> None:
    runs = [tiny_run(plugins=["crepa"], text=encoder(dino), batch=batch, accumulate=2 // batch) for batch in (2, 1)]

    whole, parts = (projector(run, 3) for run in runs)

    # Sums in another order, through Adam, which makes much of little.
    assert all(torch.allclose(whole[name], parts[name], atol=1e-5) for name in whole)


def test_from_the_cutoff_on_there_is_no_term(tiny_run: TinyRunner) -> None:
    run = tiny_run(plugins=["crepa"], text=f"{BACKBONE}start_step = 1\ncutoff_step = 3\n", steps=5)

    terms = run.metrics()["term/crepa"]
    assert len(terms) == 3
    assert terms[0] == 0 and terms[1] != 0


def test_a_threshold_that_is_reached_ends_it_for_good_and_after_a_stop(tiny_run: TinyRunner) -> None:
    text = f"{BACKBONE}similarity_threshold = -1.0\n"
    run = tiny_run(plugins=["crepa"], text=text, steps=2)
    terms = len(run.metrics()["term/crepa"])

    resumed = tiny_run(plugins=["crepa"], text=text, steps=4, resume=run)

    assert terms == len(resumed.metrics()["term/crepa"]) == 1
    assert any("crepa is off: similarity" in str(event.get("text")) for event in run.events())


def test_a_recoverable_threshold_goes_on_measuring(tiny_run: TinyRunner) -> None:
    text = f'{BACKBONE}similarity_threshold = -1.0\nthreshold_mode = "recoverable"\n'
    run = tiny_run(plugins=["crepa"], text=text, steps=4)

    assert [value != 0 for value in run.metrics()["term/crepa"]] == [True, False, False, False]
    assert len(run.metrics()["crepa/similarity"]) == 4


def test_a_projection_of_another_width_is_refused_with_the_right_one(tiny_run: TinyRunner) -> None:
    with pytest.raises(AssertionError, match=r"set crepa\.width to 32"):
        tiny_run(plugins=["crepa"], text=f"{BACKBONE}width = 48\n", steps=1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '[crepa]\nmodel = "{dino}"\nencoder_image_size = 42',
            "crepa asks for block 8, but this denoiser has blocks 0-2",
        ),
        (BACKBONE.replace("= -1", "= 0"), "crepa.teacher_block_index is block 0, and crepa.block_index block 0"),
        ('[crepa]\nmodel = "nowhere"\nblock_index = 1', "crepa.model = 'nowhere': there is no such folder"),
        ('[crepa]\nmodel = "{dino}"\nblock_index = 1\nencoder_image_size = 50', "is no multiple of 14"),
    ],
)
def test_a_run_stops_with_the_reason(tiny_run: TinyRunner, dino: Path, text: str, said: str) -> None:
    with pytest.raises(AssertionError) as stopped:
        tiny_run(plugins=["crepa"], text=text.replace("{dino}", str(dino)), steps=1)

    assert said in str(stopped.value)


def test_a_missing_encoder_is_found_before_anything_is_loaded(tiny_run: TinyRunner, st_cli) -> None:
    tiny_run(steps=1)
    file = tiny_run.root / "run-1.toml"
    changes = ["--set=plugins=" + str([f"{TINY}:TinyFamily", "crepa"]).replace("'", '"'), "--set=crepa.model=nowhere"]

    result = st_cli("train", file, "--dry-run", *changes)

    assert result.code == 2
    assert "crepa.model = 'nowhere': there is no such folder." in result.err


@pytest.mark.alone
def test_two_ranks_learn_the_projector_of_one(tiny_run: TinyRunner, dino: Path) -> None:
    text = encoder(dino, "warmup_steps = 1\nsimilarity_threshold = 0.9")
    alone = tiny_run(plugins=["crepa"], text=text, batch=2, steps=2)

    spread = tiny_run(plugins=["crepa"], text=f"{text}[ranks]\nprocesses = 2\n", batch=1, steps=2)

    # Sums in another order, through Adam, which makes much of little.
    one, two = projector(alone, 2), projector(spread, 2)
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)
    assert spread.metrics()["term/crepa"] == pytest.approx(alone.metrics()["term/crepa"], abs=1e-6)
    assert spread.metrics()["crepa/similarity"] == pytest.approx(alone.metrics()["crepa/similarity"], abs=1e-6)
