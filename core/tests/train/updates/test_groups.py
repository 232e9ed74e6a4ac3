"""Groups of weights with settings of their own, through whole runs and by themselves."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from st.errors import StError
from st.testing import TinyRunner
from st.train.saving.state import read_state
from st.train.updates.groups import GroupOptions, settings_of, split, use_settings
from st.train.updates.optimizers import AdafactorOptions, AdamWOptions

OPTIMIZER = "[optimizer]\nkind = '{kind}'\nlr = 1e-3\n{groups}\n"


@pytest.fixture
def parameters() -> dict[str, nn.Parameter]:
    return {
        name: nn.Parameter(torch.zeros(2, 3)) for name in ("a.to_q.lora_A.weight", "a.to_q.lora_B.weight", "b.norm")
    }


def _split(parameters: dict[str, nn.Parameter], *rules: dict[str, Any], defaults: Any = None) -> Any:
    names = {parameter: name for name, parameter in parameters.items()}
    groups = [{"params": list(parameters.values()), "name": "all"}]
    return split(groups, [GroupOptions(**rule) for rule in rules], names, defaults or AdamWOptions(lr=1e-3))


def test_without_rules_groups_are_as_they_were(parameters: dict[str, nn.Parameter]) -> None:
    groups, sentences = _split(parameters)

    assert groups == [{"params": list(parameters.values()), "name": "all"}]
    assert sentences == []


def test_the_first_rule_that_names_a_weight_has_it(parameters: dict[str, nn.Parameter]) -> None:
    groups, sentences = _split(
        parameters, {"match": "*.lora_B.weight", "factor": 16}, {"match": "a.*", "lr": 1e-2, "weight_decay": 0}
    )

    assert [(group["name"], len(group["params"]), group.get("lr"), group.get("weight_decay")) for group in groups] == [
        ("all", 1, None, None),
        ("all *.lora_B.weight", 1, 0.016, None),
        ("all a.*", 1, 1e-2, 0),
    ]
    assert groups[1]["params"][0] is parameters["a.to_q.lora_B.weight"]
    assert sentences[0] == "'*.lora_B.weight': 6 weights in 1 tensors with lr 0.016"


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([{"match": "b.nrom", "lr": 1}], r"match = 'b.nrom' names no weight that learns\n\s+closest are 'b.norm'"),
        ([{"match": "*", "lr": 1}, {"match": "b.*", "lr": 2}], "an earlier group has every weight"),
    ],
)
def test_a_rule_for_nothing_is_refused(parameters: dict[str, nn.Parameter], rules: Any, message: str) -> None:
    with pytest.raises(StError, match=message):
        _split(parameters, *rules)


def test_a_setting_that_the_optimizer_lacks_is_refused(parameters: dict[str, nn.Parameter]) -> None:
    class Bare(AdafactorOptions):
        weight_decay: Any = None

    with pytest.raises(StError, match=r"groups\.0\.weight_decay has no effect"):
        _split(parameters, {"match": "*", "weight_decay": 0.1}, defaults=Bare())


@pytest.mark.parametrize(
    ("rule", "message"),
    [({"match": "*"}, "changes nothing"), ({"match": "*", "lr": 1, "factor": 2}, "keep one")],
)
def test_contradictions_are_refused(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GroupOptions(**rule)


@pytest.mark.parametrize("kind", ["adamw", "sgd", "adafactor"])
def test_a_resumed_run_ends_like_an_undisturbed_one(tiny_run: TinyRunner, kind: str) -> None:
    groups = "[[optimizer.groups]]\nmatch = '*.lora_B.weight'\nfactor = 16\n"
    text = OPTIMIZER.format(kind=kind, groups=groups)

    whole = tiny_run(text=text, steps=4)
    half = tiny_run(text=text, steps=2)
    resumed = tiny_run(text=text, steps=4, resume=half)

    assert resumed.weights() == whole.weights()
    assert whole.metrics()["lr/0"] == pytest.approx([1e-3] * 4)
    assert whole.metrics()["lr/1"] == pytest.approx([16e-3] * 4)
    assert any("weights in" in event.get("text", "") and "lr 0.016" in event["text"] for event in whole.events())


def test_weights_of_a_group_with_a_tiny_rate_stay(tiny_run: TinyRunner) -> None:
    groups = "[[optimizer.groups]]\nmatch = '*.lora_A.weight'\nlr = 1e-30\nweight_decay = 0.0\n"

    run = tiny_run(text=OPTIMIZER.format(kind="adamw", groups=groups), steps=2)
    state = read_state(run.directory / "checkpoints" / "step-00000002" / "state", "optimizer")

    assert [group["weight_decay"] for group in state["param_groups"]] == [0.01, 0.0]
    assert json.loads((run.directory / "run.json").read_text())["optimizer"]["groups"][0]["match"] == "*.lora_A.weight"


def test_a_changed_group_is_named_at_the_resume(tiny_run: TinyRunner) -> None:
    before = OPTIMIZER.format(kind="adamw", groups="[[optimizer.groups]]\nmatch = '*.lora_B.weight'\nlr = 1e-2\n")
    run = tiny_run(text=before, steps=2)

    with pytest.raises(AssertionError, match=r"optimizer\.groups\.0\.lr is 0\.02, but this run was started with 0\.01"):
        tiny_run(text=before.replace("1e-2", "2e-2"), steps=4, resume=run)


def test_a_pattern_that_names_nothing_stops_the_run_by_name(tiny_run: TinyRunner) -> None:
    groups = "[[optimizer.groups]]\nmatch = '*.lora_C.weight'\nlr = 1e-2\n"

    with pytest.raises(AssertionError, match=r"'\*\.lora_C\.weight' names no weight that learns\n\s+closest are"):
        tiny_run(text=OPTIMIZER.format(kind="adamw", groups=groups))


def test_a_setting_that_was_changed_and_accepted_is_not_the_checkpoint_s() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    begun, built = (torch.optim.AdamW([weight], weight_decay=decay, eps=1e-8) for decay in (0.5, 0.0))
    before, asked = settings_of(begun.param_groups), settings_of(built.param_groups)
    state = begun.state_dict()
    state["param_groups"][0] |= {"lr": 0.7, "counter": 7}

    built.load_state_dict(state)
    use_settings(built.param_groups, asked, before)

    group = built.param_groups[0]
    assert (group["weight_decay"], group["lr"], group["counter"]) == (0.0, 0.7, 7)
