"""The page's sections on training: loss, learning rate, held-out loss, and where the time went."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from st.report.log.duration import duration
from st.report.page.curves import Series, chart, smooth, thinned
from st.report.page.story import Story

if TYPE_CHECKING:
    from numpy.typing import NDArray

COLOURS = ("c1", "c2", "c3", "c4", "c5", "c6")
WIDE, NARROW, PHONE = (1120, 300), (540, 210), (390, 250)
STAGES = {
    "data": ("waiting for data", "c2"),
    "compute": ("forward and backward", "c1"),
    "update": ("optimizer", "c3"),
    "rest": ("between stages: device and host", "rest"),
    "save": ("saving", "c5"),
    "validation": ("validation", "c4"),
    "evaluation": ("evaluation", "c6"),
    "report": ("writing this page", "c2"),
}
"""What a part of the loop's time is called, and its colour."""


def trend(story: Story) -> NDArray[np.float64]:
    """The loss, smoothed over a fiftieth of the run: steps and losses, (N, 2)."""
    return smooth(story.losses.curve("loss"), window(story))


def window(story: Story) -> float:
    """Over how many steps the loss is smoothed: it forgets half of a value in so many."""
    return max(5.0, len(story.losses) / 50)


def loss_section(story: Story) -> str:
    """Loss, learning rate, gradient norm, and the parts that the loss is made of."""
    lines = [Series("each step", story.losses.curve("loss"), faint=True), Series("smoothed", trend(story))]
    figure = _figure("Loss", lines, WIDE, story, log=True, more=f"smoothed over {window(story):.0f} steps")
    small = []
    rates = _by_prefix(story, "lr")
    if rates:
        small.append(_figure("Learning rate", rates, NARROW, story))
    own = _by_prefix(story, "optimizer/")
    if own:
        small.append(_figure("The optimizer's own numbers", own, NARROW, story, log=True))
    norms = story.reads.curve("grad_norm")
    if len(norms):
        small.append(_figure("Gradient norm, before clipping", [Series("norm", norms)], NARROW, story, log=True))
    terms = _by_prefix(story, "term/")
    if terms:
        title = "Loss terms" if len(terms) > 1 else f"Loss term: {terms[0].name}"
        small.append(_figure(title, terms, NARROW, story, log=True))
    sets = _by_prefix(story, "dataset/")
    if len(sets) > 1:
        smoothed = [Series(s.name, smooth(s.points, window(story)), s.colour) for s in sets]
        small.append(_figure("Loss by data set, smoothed", smoothed, NARROW, story, log=True))
    return f"<section><h2>Training</h2>{figure}{_cards(small)}</section>"


def evaluation_section(story: Story) -> str:
    """Held-out loss per data set, and per quarter of the time range; nothing where none was measured."""
    names = [name.removeprefix("eval/") for name in story.metrics if name.startswith("eval/") and name.count("/") == 1]
    others = [name for name in story.metrics if not name.startswith("eval/")]
    figures = []
    if names:
        lines = [Series(n, story.metrics[f"eval/{n}"], COLOURS[i % 6]) for i, n in enumerate(names)]
        figures.append(_figure("Held-out loss", lines, NARROW, story, log=True, more="fixed samples, times and noise"))
    for name in names:
        quarters = [
            Series(label, story.metrics[f"eval/{name}/q{place}"], f"q{place}")
            for place, label in enumerate(("least noise", "second quarter", "third quarter", "most noise"), start=1)
            if f"eval/{name}/q{place}" in story.metrics
        ]
        if quarters:
            figures.append(_figure(f"{name}: by amount of noise", quarters, NARROW, story, log=True))
    figures += [_figure(name, [Series(name, story.metrics[name])], NARROW, story) for name in others]
    return f"<section><h2>Held-out loss and scores</h2>{_cards(figures)}</section>" if figures else ""


def time_section(story: Story) -> str:
    """Where the time went: what the loop did, as shares of a bar and as a table, and seconds per step over the run."""
    spent = time_by_stage(story)
    whole = sum(spent.values())
    if not whole:
        return ""
    steps = story.covered.column("steps").sum()
    colours = {stage: STAGES.get(stage, (stage, COLOURS[place % 6]))[1] for place, stage in enumerate(spent)}
    bar = "".join(
        f'<span class="{colour}" style="flex:{spent[stage] / whole:.5f}" title="{escape(_title(stage))}"></span>'
        for stage, colour in colours.items()
    )
    rows = "".join(
        f'<tr><td><i class="box {colours[stage]}"></i>{escape(_title(stage))}</td>'
        f'<td class="n">{seconds / whole:.1%}</td><td class="n">{duration(seconds)}</td>'
        f'<td class="n">{duration(seconds / steps)}</td></tr>'
        for stage, seconds in spent.items()
    )
    head = '<tr><th></th><th class="n">share</th><th class="n">in all</th><th class="n">per step</th></tr>'
    table = f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"
    anatomy = (
        f'<figure class="card"><div class="head"><h3>Of {duration(whole)} in the loop</h3></div>'
        f'<div class="stack">{bar}</div><div style="height:8px"></div>{table}</figure>'
    )
    speed = _figure("Seconds per step", [Series("seconds", story.reads.curve("seconds/step"))], NARROW, story)
    return f"<section><h2>Where the time went</h2>{_cards([anatomy, speed])}</section>"


def time_by_stage(story: Story) -> dict[str, float]:
    """Seconds of the loop by what it did: the stages of a step, what none of them claims, and pauses."""
    stages: dict[str, float] = {"data": 0.0, "compute": 0.0, "update": 0.0}
    steps = story.covered.column("steps")
    rest = _known(story.reads.column("seconds/step"))
    for name in story.reads.names("seconds/"):
        if name != "seconds/step":
            spent = _known(story.reads.column(name))
            stages[name.removeprefix("seconds/")] = float((spent * steps).sum())
            rest = rest - spent
    pauses = {name: float(_known(story.pauses.column(name)).sum()) for name in story.pauses.names()}
    whole = {**stages, "rest": float((rest.clip(0.0) * steps).sum()), **pauses}
    return {name: seconds for name, seconds in whole.items() if seconds > 0}


def _known(column: NDArray[np.float64]) -> NDArray[np.float64]:
    """What is not known counts as nothing."""
    return np.nan_to_num(column, nan=0.0)


def _title(stage: str) -> str:
    return STAGES.get(stage, (stage, ""))[0]


def _figure(
    title: str, series: Sequence[Series], size: tuple[int, int], story: Story, *, log: bool = False, more: str = ""
) -> str:
    series = thinned(series)
    drawing = chart(series, width=size[0], height=size[1], log=log, marks=story.resumes)
    switchable = drawing.count("<svg") > 1
    if size == WIDE:
        small = chart(series, width=PHONE[0], height=PHONE[1], log=log, marks=story.resumes)
        drawing = f'<div class="on-desk">{drawing}</div><div class="on-phone">{small}</div>'
    labelled = series if len(series) > 1 else ()
    names = "".join(
        f'<span class="{"faintly" if one.faint else ""}"><i class="{one.colour}"></i>{escape(one.name)}</span>'
        for one in labelled
    )
    legend = f'<div class="legend">{names}</div>' if names else ""
    kind = "card wide" if size == WIDE else "card"
    switch = '<label class="switch push"><input type="checkbox" class="log-switch">log scale</label>'
    hint = f'<span class="legend quiet">{escape(more)}</span>' if more else ""
    return (
        f'<figure class="{kind}"><div class="head"><h3>{escape(title)}</h3>{legend}{hint}'
        f"{switch if switchable else ''}</div>{drawing}</figure>"
    )


def _cards(figures: Sequence[str]) -> str:
    return f'<div class="cards">{"".join(figures)}</div>' if figures else ""


def _by_prefix(story: Story, prefix: str) -> list[Series]:
    """A line for each metric of the readings that starts so, named by the rest."""
    return [
        Series(name.removeprefix(prefix).strip("/") or prefix, story.reads.curve(name), COLOURS[place % 6])
        for place, name in enumerate(story.reads.names(prefix))
    ]
