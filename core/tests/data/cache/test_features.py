"""What a technique computes of every sample is cached like latents and arrives with the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from st.testing import TinyRunner
from st.testing.runs import call_cli

PLUGIN = """
from contextlib import contextmanager
from dataclasses import replace

import st


class Brightness(st.Encoder):
    "The mean of all pixels."

    name, reads, fingerprint = {name!r}, ({reads!r},), "1"

    @contextmanager
    def open(self, device):
        def encode(inputs):
            return [{{"brightness": one.pixels.mean()[None]}} for one in inputs]

        yield encode


class Bright:
    "Compares it with the latents."

    Options = st.Options

    def __init__(self, options):
        pass

    @st.hookimpl
    def st_encoders(self, config, family):
        assert family.codec().name == "codec"
        return [Brightness()]

    @st.hookimpl
    def st_step(self, run):
        def wrap(step):
            def loss(prediction, noised, batch):
                pixels = (batch.latents.float() / 2 + 0.5).flatten(1).mean(1)
                off = (batch.extras["brightness"][:, 0] - pixels).abs().max()
                return step.loss(prediction, noised, batch).plus("off", off)

            return replace(step, loss=loss)

        return wrap
"""


def plugin(directory: Path, name: str = "brightness", reads: str = "pixels") -> str:
    """A plugin whose loss term is how far a sample's feature is from what its latents say."""
    file = directory / "bright.py"
    file.write_text(PLUGIN.format(name=name, reads=reads), encoding="utf-8")
    return f"{file}:Bright"


def test_features_are_those_of_the_samples_of_a_batch(tiny_run: TinyRunner, tmp_path: Path) -> None:
    run = tiny_run(plugins=[plugin(tmp_path)], steps=4)

    assert len(run.metrics()["term/off"]) == 4
    assert max(run.metrics()["term/off"]) < 1e-5


def test_features_are_computed_once_and_explained_and_kept_by_prune(tiny_run: TinyRunner, tmp_path: Path) -> None:
    run = tiny_run(plugins=[plugin(tmp_path)], steps=1)
    file = tmp_path / "tiny-runs" / "run-1.toml"
    sample = sorted((tmp_path / "tiny-runs" / "photos").glob("*.png"))[0].name

    explained = call_cli("cache", "explain", file, sample)
    pruned = call_cli("cache", "prune", file, "--unused")
    again = call_cli("train", file, "--resume", "--accept", "steps", "--set", "steps=2")

    assert "brightness" in explained.out
    assert pruned.code == 0 and again.code == 0, again.err
    assert "0.0 MB freed" in pruned.out
    stages = [event for event in run.events() if "encoding brightness" in str(event)]
    assert len(stages) == len([event for event in _events(run.directory) if "encoding brightness" in str(event)])


def _events(directory: Path) -> list[dict[str, Any]]:
    from st.report.log.events import read_events

    return list(read_events(directory / "events.jsonl"))


@pytest.mark.parametrize(
    ("given", "said"), [({"name": "codec"}, "named 'codec'"), ({"reads": "caption"}, "which reads captions")]
)
def test_an_encoder_that_cannot_be_told_apart_or_fed_is_refused(
    tiny_run: TinyRunner, tmp_path: Path, given: dict[str, str], said: str
) -> None:
    with pytest.raises(AssertionError, match=said):
        tiny_run(plugins=[plugin(tmp_path, **given)], steps=1)
