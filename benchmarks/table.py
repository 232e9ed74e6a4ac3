"""The table of figures, as the docs have it."""

from __future__ import annotations

from collections.abc import Sequence

from figure import Bar, Figure, shown

HEAD = """# Benchmarks

What the trainer costs beyond the work itself, as ratios within one run. `floor` is a bare program that does the same
work. Seconds are CPU seconds of the whole process, all of its threads, with one thread for the mathematics: on an idle
core that is what a clock on the wall shows, and on a busy machine it is far steadier. Programs that are compared run in
turn.

"""


def markdown(figures: Sequence[Figure], date: str, machine: str, command: str, minutes: float) -> str:
    """The page. command: what a reader types to get it."""
    lines = [
        f"Measured on {date} in {minutes:.0f} minutes with `{command}` on {machine}.",
        "",
        *rows_of(figures, head=True),
        "",
        *(f"- {figure.what}: {figure.detail}." for figure in figures if figure.detail),
        "",
    ]
    return HEAD + "\n".join(lines)


def rows_of(figures: Sequence[Figure], head: bool = False) -> list[str]:
    """Lines of the table."""
    heading = ["| what | floor | `st` | figure | bar | holds |", "| --- | --- | --- | --- | --- | --- |"]
    return [*(heading if head else ()), *(_row(figure) for figure in figures)]


def _row(figure: Figure) -> str:
    holds = {None: "", True: "yes", False: "**no**"}[figure.holds]
    cells = (
        figure.what,
        figure.floor,
        figure.ours,
        "not measured" if figure.value is None else shown(figure.value, figure.unit),
        _bar(figure.bar, figure.unit),
        holds,
    )
    return f"| {' | '.join(cells)} |"


def _bar(bar: Bar | None, unit: str) -> str:
    if bar is None:
        return ""
    text = f"{bar.limit:g}{'' if unit in ('x', '%') else ' '}{unit}"
    return f"{'at most' if bar.at_most else 'at least'} {text}"
