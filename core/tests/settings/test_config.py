"""A run file becomes typed settings that can be written back and compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from st.errors import ProblemsFound
from st.settings.assembly import assemble, assemble_saved
from st.settings.config import RunConfig, RunOptions, section_names, section_options

RunToml = Callable[[str], Path]

RUN = """
    plugins = ["quill"]
    steps = 10
    output = "runs/first"
    [[dataset]]
    url = "file:photos"
    shuffle = {count = 2}
    [average]
    decay = 0.9
    [optimizer]
    kind = "sgd"
    momentum = 0.5
"""


@pytest.fixture
def configure(quill: Path, run_toml: RunToml) -> Callable[..., RunConfig]:
    def configure(text: str = RUN, *overrides: str, **environment: str) -> RunConfig:
        return assemble(run_toml(text), (), overrides, environment=environment)[0]

    return configure


@pytest.fixture
def refusal(configure: Callable[..., RunConfig]) -> Callable[..., list[str]]:
    def refusal(text: str) -> list[str]:
        with pytest.raises(ProblemsFound) as raised:
            configure(text)
        return [problem.what for problem in raised.value.problems]

    return refusal


def test_sections_are_typed_and_default(configure: Callable[..., RunConfig]) -> None:
    config = configure()

    assert (config.steps, config.epochs, config.batch, config.precision) == (10, None, 1, "bf16")
    assert config.optimizer.kind == "sgd"
    assert config.optimizer.options.model_dump()["momentum"] == 0.5
    assert (config.schedule.kind, config.adapter.kind, config.distance.kind) == ("constant", "lora", "l2")
    assert config.density.kind == "logit_normal"
    assert config.average is not None
    assert config.average.decay == 0.9
    assert config.quantizer is None
    assert config.clip.norm == 1.0


def test_section_that_is_off_by_default_is_none_until_written(configure: Callable[..., RunConfig]) -> None:
    assert configure('plugins = ["quill"]').average is None
    assert configure('plugins = ["quill"]\n[average]').average is not None


def test_plain_config_reads_back_as_itself(configure: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = configure()
    path = tmp_path / "run.json"
    path.write_text(json.dumps(config.plain()))

    again, _ = assemble(path, environment={})

    assert again.plain() == config.plain()
    assert again.optimizer.options == config.optimizer.options


def test_every_section_of_a_run_file_is_in_the_plain_config(configure: Callable[..., RunConfig]) -> None:
    assert set(configure().plain()) == {*RunOptions.model_fields, *section_names()}


def test_plain_config_keeps_secrets_as_placeholders(configure: Callable[..., RunConfig]) -> None:
    config = configure(RUN.replace("file:photos", "file:{env:ROOT}/photos"), ROOT="/secret")

    assert config.datasets[0].options.url == "file:/secret/photos"
    assert config.plain()["dataset"][0]["url"] == "file:{env:ROOT}/photos"


def test_saved_run_fills_in_its_placeholders_and_obeys_no_variable(
    configure: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(RUN.replace("file:photos", "file:{env:ROOT}/photos"), ROOT="/secret")
    path = tmp_path / "run.json"
    path.write_text(json.dumps(config.plain()))
    monkeypatch.setenv("ROOT", "/moved")
    monkeypatch.setenv("ST_STEPS", "99")

    again, _ = assemble_saved(path)

    assert again.datasets[0].options.url == "file:/moved/photos"
    assert again.steps == 10


def test_origin_of_every_value_is_known(configure: Callable[..., RunConfig]) -> None:
    config = configure(RUN, "clip.norm=2", ST_OPTIMIZER__LR="0.5")

    assert config.origin(("steps",)) == "run.toml:2"
    assert config.origin(("dataset", 0, "shuffle", "count")) == "run.toml:6"
    assert config.origin(("clip", "norm")) == "--set"
    assert config.origin(("optimizer", "lr")) == "ST_OPTIMIZER__LR"
    assert config.origin(("clip", "value")) == "default"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stepz = 3", "run.toml:2: a run has no option 'stepz'. Did you mean 'steps'?"),
        ("[optimiser]", "run.toml:2: [optimiser] is neither a section nor an active plugin. Did you mean 'optimizer'"),
        ("batch = 'two'", "run.toml:2: batch = 'two': must be a whole number."),
        ("precision = 'f16'", "run.toml:2: precision = 'f16': must be 'fp32', 'bf16' or 'fp16'."),
        (f"seed = {2**63}", f"run.toml:2: seed = {2**63}: must be"),
        ("clip = 3", "run.toml:2: clip = 3: must be a table of settings."),
        ("[dataset]\nurl = 'a'", "run.toml:2: [dataset]: a run has a list of data sets."),
        ("[[dataset]]\nrepeats = 1", "run.toml:2: [dataset.0] url: must be set."),
        ("[[dataset]]\nurl = 'a'\nresolution = 3", "run.toml:2: [dataset.0]: resolution = 3 is in pixels here"),
        ("[[dataset]]\nurl = 'a'\nshuffle = {cuont = 1}", "run.toml:4: [dataset.0.shuffle] has no option 'cuont'. Did"),
        (
            "[[dataset]]\nurl = 'a'\ncrop_aspects = ['x']",
            "run.toml:4: [dataset.0.crop_aspects] 0 = 'x': must be a number or",
        ),
        ("[[dataset]]\nurl = 'x/a'\n[[dataset]]\nurl = 'y/a'", "run.toml:4: [dataset] 1: dataset.0 is named 'a' too."),
        ("[optimizer]\nkind = 3", "run.toml:3: [optimizer] kind = 3: must be text."),
        ("[quantizer]\nrank = 3", "run.toml:2: [quantizer] kind: must be set."),
        (
            "[ranks]\nengine = 'dpd'",
            "run.toml:3: [ranks] engine = 'dpd': no engine is named 'dpd'. Did you mean 'ddp'?",
        ),
    ],
)
def test_wrong_setting_says_where_and_what(refusal: Callable[..., list[str]], text: str, said: str) -> None:
    (problem,) = refusal(f'plugins = ["quill"]\n{text}\n')

    assert problem.startswith(said)


def test_choices_that_contradict_each_other_are_refused(refusal: Callable[..., list[str]]) -> None:
    offset, weighting = refusal('plugins = ["quill"]\n[noise]\noffset = 0.1\n[weighting]\nkind = "min_snr"\n')

    assert offset.startswith("[noise] offset = 0.1")
    assert "min_snr" in weighting


def test_plugins_that_are_no_list_are_refused(refusal: Callable[..., list[str]]) -> None:
    assert "run.toml:1: plugins = 'quill': must be a list." in refusal("plugins = 'quill'\n")


@pytest.mark.parametrize("section", ["clip", "loader", "cache", "checkpoint", "validation", "report", "ranks"])
def test_every_option_of_a_section_is_documented(section: str) -> None:
    fields = section_options(section).model_fields

    assert [name for name, field in fields.items() if not (field.description or "").endswith(".")] == []


def test_mistyped_choice_is_answered_with_the_closest(configure: Callable[..., RunConfig]) -> None:
    with pytest.raises(ProblemsFound) as raised:
        configure('plugins = ["quill"]\nprecision = "bf17"')

    assert [problem.fix for problem in raised.value.problems] == ["Did you mean 'bf16'?"]
