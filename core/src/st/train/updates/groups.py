"""Groups: weights that learn at another rate, or lose another share per step, than the rest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from st.errors import CheckpointDamaged, StError
from st.options import Options
from st.spelling import closest

if TYPE_CHECKING:
    from torch import Tensor

    ParamGroup = dict[str, Any]


class GroupOptions(Options):
    """Some of the weights, and what the optimizer does otherwise with them. The first group that names a weight has
    it."""

    match: str = Field(min_length=1)
    """Names of weights, as a run's report lists them; * stands for anything, as in "*.attn.*" or "*.lora_B.weight"."""
    lr: float | None = Field(None, gt=0)
    """Learning rate at the top of the schedule. Unset: the optimizer's."""
    factor: float | None = Field(None, gt=0)
    """The optimizer's learning rate times this, in place of lr. On "*.lora_B.weight", 16 or so is LoRA+
    (arXiv:2402.12354)."""
    weight_decay: float | None = Field(None, ge=0)
    """Fraction of each weight taken away per step, as the optimizer has it. Unset: the optimizer's."""

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.lr is not None and self.factor is not None:
            raise ValueError("lr and factor both set the learning rate; keep one")
        if self.lr is None and self.factor is None and self.weight_decay is None:
            raise ValueError("it changes nothing; set lr, factor or weight_decay")
        return self


def split(
    groups: Sequence[ParamGroup], rules: Sequence[GroupOptions], names: Mapping[Tensor, str], defaults: Options
) -> tuple[list[ParamGroup], list[str]]:
    """Parameter groups in which each rule's weights are a group by themselves, and a sentence about each rule.

    names: what each parameter is called. defaults: the optimizer's options. Raises StError for a rule that names no
    weight, with the closest names, or none that is left; and for a setting that the optimizer does not have.
    """
    if not rules:
        return [dict(group) for group in groups], []
    every = [names[parameter] for group in groups for parameter in group["params"]]
    rule_of = {name: _first(name, rules) for name in every}
    settings = [_settings(rule, index, defaults) for index, rule in enumerate(rules)]
    for index, rule in enumerate(rules):
        if index not in rule_of.values():
            raise _matches_nothing(index, rule, every)
    found: list[ParamGroup] = []
    counts = [[0, 0] for _ in rules]
    for group in groups:
        for index in (None, *range(len(rules))):
            mine = [parameter for parameter in group["params"] if rule_of[names[parameter]] == index]
            if mine and index is None:
                found.append({**group, "params": mine})
            elif mine and index is not None:
                name = f"{group.get('name', '')} {rules[index].match}".strip()
                found.append({**group, **settings[index], "params": mine, "name": name})
                counts[index][0] += sum(parameter.numel() for parameter in mine)
                counts[index][1] += len(mine)
    return found, [_sentence(*one) for one in zip(rules, settings, counts, strict=True)]


def check_saved(saved: Mapping[str, Any], groups: Sequence[ParamGroup]) -> None:
    """Raises CheckpointDamaged where an optimizer's saved state is of other groups: it goes by their order."""
    before = [(group.get("name", ""), len(group["params"])) for group in saved.get("param_groups", groups)]
    now = [(group.get("name", ""), len(group["params"])) for group in groups]
    if before != now:
        raise CheckpointDamaged(
            "the optimizer was saved with other groups of weights than it has",
            why=f"saved: {_listed(before)}; here: {_listed(now)}",
            fix="set optimizer.groups as it was; lr and factor of a group may change, match may not",
        )


_PLAIN = (bool, int, float, str, tuple, type(None))


def _first(name: str, rules: Sequence[GroupOptions]) -> int | None:
    return next((index for index, rule in enumerate(rules) if fnmatchcase(name, rule.match)), None)


def _settings(rule: GroupOptions, index: int, defaults: Options) -> dict[str, float]:
    known = defaults.model_dump()
    found: dict[str, float] = {}
    if rule.factor is not None:
        found["lr"] = rule.factor * _known(known, "lr", "factor", index)
    if rule.lr is not None:
        found["lr"] = rule.lr
    if rule.weight_decay is not None:
        _known(known, "weight_decay", "weight_decay", index)
        found["weight_decay"] = rule.weight_decay
    return found


def _known(known: Mapping[str, Any], name: str, setting: str, index: int) -> float:
    if not isinstance(known.get(name), (int, float)):
        raise StError(
            f"optimizer.groups.{index}.{setting} has no effect: this optimizer has no {name}",
            fix=f"leave it out, or choose an optimizer with {name}",
        )
    return float(known[name])


def _matches_nothing(index: int, rule: GroupOptions, names: Sequence[str]) -> StError:
    setting = f"optimizer.groups.{index}.match = {rule.match!r}"
    if any(fnmatchcase(name, rule.match) for name in names):
        return StError(
            f"{setting}: an earlier group has every weight that it names", fix="put it first, or leave it out"
        )
    near = closest(rule.match.strip("*"), names) or list(names[:3])
    return StError(
        f"{setting} names no weight that learns",
        why=f"closest are {', '.join(map(repr, near))}",
        fix="use * for what may differ, as in '*.attn.*'",
    )


def _sentence(rule: GroupOptions, settings: Mapping[str, float], counts: Sequence[int]) -> str:
    values = ", ".join(f"{name} {value:g}" for name, value in settings.items())
    return f"{rule.match!r}: {counts[0]:,} weights in {counts[1]} tensors with {values}"


def _listed(groups: Sequence[tuple[str, int]]) -> str:
    return ", ".join(f"{name or 'unnamed'} ({count})" for name, count in groups)


def settings_of(groups: Sequence[ParamGroup]) -> list[dict[str, Any]]:
    """What groups hold before the first step, but for weights and tensors: an optimizer's settings and its counters."""
    return [
        {name: value for name, value in group.items() if name != "params" and isinstance(value, _PLAIN)}
        for group in groups
    ]


def use_settings(
    groups: Sequence[ParamGroup], asked: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]]
) -> None:
    """Give groups that took over a checkpoint's state the settings that were changed since, and accepted.

    asked, before: ``settings_of`` the groups as they are built now, and as they were when the checkpoint's run was
    begun. What both have alike, such as counters, stays the checkpoint's, whatever an optimizer calls its settings.
    """
    for group, now, then in zip(groups, asked, before, strict=True):
        group.update({name: value for name, value in now.items() if name not in then or then[name] != value})
