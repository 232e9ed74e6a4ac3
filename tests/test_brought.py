"""What plugins of this tree are said to bring is what they register."""

from __future__ import annotations

from pathlib import Path

import pytest

from st.plugins.catalogue import Catalogue
from st.plugins.loading import load
from st.registrar import Registrar
from st.settings.config import CHOICES
from st.testing.runs import call_cli, write_photos

BROUGHT = Catalogue.scan().brought
CHOSEN = {*CHOICES, "engine", "sampler", "validator"}
"""Kinds that a run file names."""
PLUGINS = sorted({one.plugin for one in BROUGHT})


@pytest.mark.parametrize("name", PLUGINS)
def test_plugins_register_what_they_are_said_to_bring(name: str) -> None:
    cls, registrar = load(Catalogue.scan().find(name, "hooks")), Registrar()
    cls(cls.Options()).st_register(register=registrar)

    said = {(one.kind, one.name) for one in BROUGHT if one.plugin == name and not one.written}
    assert {(one.kind, one.name) for one in registrar.strategies() if one.kind in CHOSEN} == said


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("optimizer.kind=prodigy", "The plugin 'optimizers' brings it: add 'optimizers' to plugins."),
        ("adapter.kind=lokr", 'add \'lycoris\' to plugins, and write kind = "lycoris", algo = "lokr".'),
        ("quantizer.kind=nf4-bnb", "add 'bitsandbytes' to plugins."),
        ("ranks.engine=zero2", "add 'deepspeed' to plugins."),
    ],
)
def test_a_name_that_a_plugin_brings_is_pointed_at_it(
    setting: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_photos(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    text = 'plugins = ["pocket"]\noutput = "out"\nsteps = 1\n[[dataset]]\nurl = "photos"\n'
    (tmp_path / "run.toml").write_text(text)

    done = call_cli("train", "run.toml", "--dry-run", "--set", setting)

    assert done.code == 2
    assert said in done.err
