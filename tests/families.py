"""The table of all model families in docs/models/index.md, from what the packages declare and what was tried.

    python tests/families.py

Declared: whether a family's path is a flow, its text encoders, whether a flavour edits pictures, its file formats.
Tried: LoRA, LyCORIS, full, ControlNet, quantized weights and TREAD, where tests/combinations.py found that they work.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import combinations
from combinations_axes import Axes, Cell
from combinations_page import kept

from st.diffusion.path import DiscretePath
from st.plugins.catalogue import Catalogue

PAGE = Path(__file__).parent.parent / "docs" / "models" / "index.md"
BEGIN, END = "<!-- families -->", "<!-- end -->"
TRIED = ("LoRA", "LyCORIS", "full", "ControlNet", "quantized", "TREAD")
COLUMNS = ("family", *TRIED, "flow", "text encoders", "edits", "formats")


def table(folder: Path) -> str:
    """The table in Markdown. folder: for tiny checkpoints."""
    axes = Axes.discover()
    works = [cell for cell, verdict in kept(axes).items() if verdict.status == "works"]
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for name in Catalogue.scan().names("models"):
        family = combinations.subject(name, folder)
        tried = _tried([cell for cell in works if cell.family == name])
        cells = [
            f"[{name}]({_page_of(name)})",
            *(_tick(column in tried) for column in TRIED),
            _tick(not isinstance(family.path, DiscretePath)),
            ", ".join(_text_encoders(family)) or "none",
            _tick(any(hasattr(one, "references") and one.references() is not None for one in _flavours(family))),
            ", ".join(family.adapter_formats()),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _tried(works: Sequence[Cell]) -> set[str]:
    """The columns that these combinations tick."""
    found = set()
    for cell in works:
        if cell.technique is None and cell.quantizer is not None:
            found.add("quantized")
        elif cell.technique is not None and cell.quantizer is None:
            found.add(cell.technique.name)
        elif cell.technique is None:
            found.add(cell.adapter.name.partition(",")[0])
    return found


def _text_encoders(family: Any) -> list[str]:
    """Classes of the text encoders of its checkpoint."""
    if not hasattr(family, "folder"):
        return []
    listed = family.folder.components().items()
    return list(dict.fromkeys(kind for name, kind in listed if name.startswith(("text_encoder", "condition_encoder"))))


def _flavours(family: Any) -> Iterator[Any]:
    """The family in each of its flavours."""
    field = type(family.options).model_fields.get("flavour")
    for flavour in (None,) if field is None else get_args(field.annotation):
        change = {} if flavour is None else {"flavour": flavour}
        yield type(family)(family.options.model_copy(update=change))


def _page_of(name: str) -> str:
    """From docs/models: the family's page, or what its package says of itself."""
    own = f"{name.replace('_', '-')}.md"
    if (PAGE.parent / own).exists():
        return own
    return f"../../plugins/models/{name}/README.md"


def _tick(yes: bool) -> str:
    return "yes" if yes else ""


def page(text: str, folder: Path) -> str:
    """The page with the table in its place."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{table(folder)}\n{END}{rest.partition(END)[2]}"


def main() -> int:
    """Write the table into the page."""
    with tempfile.TemporaryDirectory() as folder:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), Path(folder)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
