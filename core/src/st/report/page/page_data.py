"""The page's section on data: what is trained on, what was left out and why, captions that are cut off."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from st.report.page.story import Story

BUCKETS = 24


def data_section(story: Story) -> str:
    """A card for each data set; nothing where none was described and nothing was dropped."""
    names = dict.fromkeys([*story.datasets, *(dataset for dataset, _ in story.dropped)])
    cards = [_dataset(name, story) for name in names]
    if story.captions:
        cards.append(_captions(story))
    return f'<section><h2>Data</h2><div class="packed">{"".join(cards)}</div></section>' if cards else ""


def _dataset(name: str, story: Story) -> str:
    facts = story.datasets.get(name, {})
    about = [str(facts[key]) for key in ("role", "url") if facts.get(key)]
    if facts.get("samples") is not None:
        about.insert(0, f"{int(facts['samples']):,} samples")
    if facts.get("repeats"):
        about.append(f"{facts['repeats']} repeats")
    return (
        f'<div class="card"><div class="head"><h3>{escape(name)}</h3>'
        f'<span class="legend quiet">{escape(" · ".join(about))}</span></div>'
        f"{_buckets(facts.get('buckets'))}{_dropped(name, story)}</div>"
    )


def _buckets(buckets: object) -> str:
    """A bar for each geometry, most samples first."""
    if not isinstance(buckets, Mapping) or not buckets:
        return ""
    counts = sorted(((str(name), int(count)) for name, count in buckets.items()), key=lambda one: -one[1])
    most = counts[0][1] or 1
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td style="width:70%"><span class="bar" style="width:{count / most:.1%}"></span>'
        f'</td><td class="n">{count:,}</td></tr>'
        for name, count in counts[:BUCKETS]
    )
    rest = counts[BUCKETS:]
    if rest:
        rows += (
            f'<tr><td>{len(rest)} more sizes</td><td></td><td class="n">{sum(count for _, count in rest):,}</td></tr>'
        )
    return (
        f'<table><thead><tr><th>size</th><th></th><th class="n">samples</th></tr></thead><tbody>{rows}</tbody></table>'
    )


def _dropped(name: str, story: Story) -> str:
    """What was left out, by reason, with some of the files."""
    reasons = sorted(((r, count) for (d, r), count in story.dropped.items() if d == name), key=lambda one: -one[1])
    if not reasons:
        return ""
    rows = "".join(
        f'<tr><td>{escape(reason)}<div class="keys">{escape(_examples(story, (name, reason), count))}</div></td>'
        f'<td class="n">{count:,}</td></tr>'
        for reason, count in reasons
    )
    return (
        '<table style="margin-top:10px"><thead><tr><th>left out because</th><th class="n">samples</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )


def _examples(story: Story, group: tuple[str, str], count: int) -> str:
    keys = story.dropped_keys.get(group, [])
    more = f" and {count - len(keys):,} more" if count > len(keys) else ""
    return ", ".join(keys) + more


def _captions(story: Story) -> str:
    rows = "".join(
        f'<tr><td>{escape(_short(one))}<div class="keys">{escape(str(one.get("dataset", "")))}: '
        f'{escape(str(one.get("key", "")))}</div></td><td class="n">{one.get("tokens")}</td>'
        f'<td class="n">{one.get("read")}</td></tr>'
        for one in story.captions
    )
    return (
        '<div class="card"><div class="head"><h3>Captions that are cut off most</h3></div><table><thead><tr><th></th>'
        f'<th class="n">tokens</th><th class="n">read</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _short(caption: Mapping[str, Any]) -> str:
    text = str(caption.get("caption", ""))
    return text if len(text) <= 160 else f"{text[:157]}..."
