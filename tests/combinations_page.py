"""What was found, kept family by family in combinations.json, and docs/combinations.md that is made of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from combinations_axes import AXES, Axes, Cell, Verdict

KEPT = Path(__file__).with_name("combinations.json")
PAGE = KEPT.parent.parent / "docs" / "combinations.md"


def page(verdicts: dict[Cell, Verdict], absent: dict[str, str]) -> str:
    """The tables in Markdown, with the reasons as numbered notes."""
    notes: dict[str, int] = {}

    def mark(verdict: Verdict | None) -> str:
        if verdict is None:
            return ""
        if verdict.status == "works":
            return "works"
        number = notes.setdefault(verdict.reason, len(notes) + 1)
        return f"{'refused' if verdict.status == 'refused' else '**fails**'} [{number}]"

    families = list(dict.fromkeys(cell.family for cell in verdicts))
    tables = []
    for title, axes in _TABLES.items():
        rows: dict[str, dict[str, str]] = {}
        for cell, verdict in verdicts.items():
            if tuple(axis for axis in AXES[1:] if getattr(cell, axis) is not None) == axes:
                name = " + ".join(row.name for row in (cell.rows[1:] if axes else cell.rows))
                name += f" ({cell.adapter.name})" if axes else ""
                rows.setdefault(name, {})[cell.family] = mark(verdict)
        if rows:
            head = [f"## {title}", "", f"| | {' | '.join(families)} |", "|---" * (len(families) + 1) + "|"]
            body = [
                f"| {name} | {' | '.join(found.get(one, '') for one in families)} |" for name, found in rows.items()
            ]
            tables += [*head, *body, ""]
    reasons = [f"{number}. {reason}" for reason, number in notes.items()]
    reasons += [f"- not tried: `{name}` cannot be loaded where this was written: {why}" for name, why in absent.items()]
    return "\n".join([_HEAD, *tables, *(["## Why", ""] if reasons else []), *reasons]).rstrip() + "\n"


def kept(axes: Axes, file: Path = KEPT) -> dict[Cell, Verdict]:
    """Verdicts of the file for the rows that there are, in their order."""
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return {
        cell: Verdict(*known[cell.family][cell.rest]) for cell in axes.cells(known) if cell.rest in known[cell.family]
    }


def keep(verdicts: Mapping[Cell, Verdict], file: Path = KEPT) -> None:
    """Add these verdicts to the file."""
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for cell, verdict in verdicts.items():
        known.setdefault(cell.family, {})[cell.rest] = [verdict.status, verdict.reason]
    ordered = {family: dict(sorted(known[family].items())) for family in sorted(known)}
    file.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")


_TABLES: dict[str, tuple[str, ...]] = {
    "Adapters": (),
    "Techniques": ("technique",),
    "Quantizers": ("quantizer",),
    "Techniques and quantizers": ("technique", "quantizer"),
}
_HEAD = """# What combines with what

`python tests/combinations.py --write` writes this page. Each combination trains three steps of a
tiny checkpoint. It *works* where a run that was stopped and resumed ends with the same files, byte for byte, and the
saved run opens again. With LoRA and full on weights that are not quantized, the written file also makes a fresh model
answer as the trained one does. *Refused* is a message before the first step.
"""
