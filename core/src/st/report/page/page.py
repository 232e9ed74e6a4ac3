"""``report.html``: a run on one page, in one file that needs no network and no server."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime
from html import escape
from importlib.resources import files
from pathlib import Path

from st.report.log.duration import duration
from st.report.log.events import FILE
from st.report.page.curves import number
from st.report.page.page_data import data_section
from st.report.page.page_samples import Thumbnails, samples_section
from st.report.page.page_training import evaluation_section, loss_section, time_section, trend
from st.report.page.story import Following, Story

PAGE = "report.html"


class RunPage:
    """The page of the run in ``directory``, written from its event log. Not thread-safe.

    What was read of the log and small copies of pictures are kept from one writing to the next, so that the page of a
    long run costs what happened since the last one, and a few curves.
    """

    def __init__(self, directory: Path) -> None:
        self._directory, self._following, self._thumbnails = directory, Following(directory / FILE), Thumbnails()

    def write(self, every: float = 60.0) -> Path:
        """Write it; its path. A reader sees the old page or the new one. Raises OSError.

        every: seconds after which it is written again while the run is alive.
        """
        page = self._directory / PAGE
        unfinished = self._directory / f".{PAGE}.part"
        text = render_page(self._following.so_far(), self._directory, self._thumbnails, every)
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, page)
        return page


def render_page(story: Story, directory: Path, thumbnails: Thumbnails, every: float) -> str:
    """The whole page as text. every: as ``RunPage.write`` has it."""
    package = files("st.report.page")
    style, script = (package.joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    title = escape(story.name or directory.name)
    sections = (
        _header(story, directory),
        _tiles(story),
        loss_section(story),
        evaluation_section(story),
        samples_section(story, directory, thumbnails),
        time_section(story),
        data_section(story),
        _notes(story),
        _settings(story),
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{title}</title>'
        f"<style>{style}</style></head>{_body(story, every)}<main>{''.join(sections)}"
        f"<footer>Written from {FILE}, which every other program may read as well.</footer></main>"
        f'<script type="module">{script}</script></body></html>\n'
    )


def _body(story: Story, every: float) -> str:
    """What the script needs to refresh the page of a run that goes on, and to notice that it does not."""
    if story.outcome != "running":
        return "<body>"
    return f'<body data-alive="{story.latest:.0f}" data-every="{every:.0f}">'


def _header(story: Story, directory: Path) -> str:
    facts = []
    if story.began:
        facts.append(f"started {datetime.fromtimestamp(story.began):%Y-%m-%d %H:%M}")
    facts += _in_short(story.config)
    facts.append(story.directory or str(directory))
    why = f'<p class="why">{escape(story.why)}</p>' if story.why else ""
    if story.outcome == "running" and story.latest:
        facts.append(f"last heard of {datetime.fromtimestamp(story.latest):%Y-%m-%d %H:%M:%S}")
    return (
        f'<header class="run"><h1>{escape(story.name or directory.name)}</h1>'
        f'<span class="badge {escape(story.outcome)}">{escape(story.outcome)}</span>'
        f'<p class="facts">{escape(" · ".join(facts))}</p></header>{why}'
    )


def _in_short(config: Mapping[str, object]) -> list[str]:
    """What a run is, of what its settings say: plugins, adapter, batch, precision."""
    found = []
    plugins = config.get("plugins")
    if isinstance(plugins, list) and plugins:
        found.append(" + ".join(str(name).rpartition(":")[2] for name in plugins))
    for section in ("adapter", "optimizer"):
        table = config.get(section)
        if isinstance(table, Mapping) and table.get("kind"):
            rank = f" rank {table['rank']}" if table.get("rank") else ""
            found.append(f"{table['kind']}{rank}")
    if config.get("batch"):
        found.append(f"batch {config['batch']}")
    if config.get("precision"):
        found.append(str(config["precision"]))
    return found


def _tiles(story: Story) -> str:
    tiles = [_tile("Steps", f"{story.step:,}", f"of {story.total:,}" if story.total else "")]
    smoothed = trend(story)
    if len(smoothed):
        first, last = smoothed[min(len(smoothed) - 1, 9)][1], smoothed[-1][1]
        change = f"{(last - first) / first:+.0%} since the start" if first else ""
        tiles.append(_tile("Loss", number(last), change))
    for name, points in story.metrics.items():
        if name.startswith("eval/") and name.count("/") == 1:
            step, best = min(points, key=lambda point: point[1])
            note = f"best {number(best)} at step {step:,}" if step != points[-1][0] else "the best so far"
            tiles.append(_tile(f"Held out: {name.removeprefix('eval/')}", number(points[-1][1]), note))
    per_step, rate, wait = (story.reads.last(name) for name in ("seconds/step", "samples_per_second", "data_wait"))
    if per_step is not None:
        tiles.append(_tile("Time per step", duration(per_step), f"{rate:.3g} samples/s" if rate else ""))
    if wait is not None:
        tiles.append(_tile("Waiting for data", f"{wait:.1%}", "of each step, lately"))
    tiles.append(_tile("Time", duration(story.seconds), _time_left(story)))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _time_left(story: Story) -> str:
    per_step = story.reads.last("seconds/step")
    if story.outcome != "running" or per_step is None or story.step >= story.total:
        return f"in {len(story.resumes) + 1} parts" if story.resumes else ""
    return f"about {duration(per_step * (story.total - story.step))} left"


def _tile(label: str, value: str, more: str) -> str:
    return (
        f'<div class="tile"><div class="label">{escape(label)}</div><div class="value">{escape(value)}</div>'
        f'<div class="more">{escape(more) or "&nbsp;"}</div></div>'
    )


def _notes(story: Story) -> str:
    if not story.notes:
        return ""
    rows = "".join(
        f'<tr class="{escape(note.kind)}"><td>{datetime.fromtimestamp(note.time):%m-%d %H:%M:%S}</td>'
        f'<td>step {note.step:,}</td><td class="text">{escape(note.text)}</td></tr>'
        for note in story.notes
    )
    serious = sum(note.kind in ("warning", "error", "checkpoint_failed") for note in story.notes)
    count = f" ({serious} to look at)" if serious else ""
    table = f'<table class="notes"><tbody>{rows}</tbody></table>'
    return f'<section><h2>Notes{count}</h2><div class="card">{table}</div></section>'


def _settings(story: Story) -> str:
    groups: dict[str, list[tuple[str, object]]] = {}
    for name, value in story.config.items():
        _flatten(name, value, "", groups)
    if story.versions:
        groups["versions"] = list(story.versions.items())
    if not groups:
        return ""
    blocks = "".join(
        f"<section><h3>{escape(group or 'run')}</h3>"
        + "".join(f"<div><span>{escape(name)}</span><b>{escape(_shown(value))}</b></div>" for name, value in rows)
        + "</section>"
        for group, rows in groups.items()
    )
    return (
        '<section><h2>Settings and versions</h2><details class="card"><summary>every setting of this run</summary>'
        f'<div class="settings">{blocks}</div></details></section>'
    )


def _flatten(name: str, value: object, group: str, groups: dict[str, list[tuple[str, object]]]) -> None:
    """Tables become groups, lists of tables numbered groups, and everything else a row of its group."""
    path = f"{group}.{name}" if group else name
    if isinstance(value, Mapping):
        for key, item in value.items():
            _flatten(str(key), item, path, groups)
    elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        for place, item in enumerate(value, start=1):
            _flatten(f"{name} {place}", item, group, groups)
    else:
        groups.setdefault(group, []).append((name, value))


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return number(value)
    if isinstance(value, list):
        return ", ".join(_shown(item) for item in value) or "none"
    return "" if value is None else str(value)
