"""The rooms of the core: which there are, what they import, and a picture of them.

A room is a folder of ``core/src/st`` with its files, or one module of the hall, ``core/src/st`` itself. What
``st.testing`` re-exports for users is no import of its room, and ``hookspecs`` may name everything, for types only.
``python tests/rooms.py`` writes the picture of ``docs/layout.md`` anew.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
CORE = ROOT / "core" / "src" / "st"
PICTURE = ROOT / "docs" / "pictures" / "layout.svg"
NAMES_EVERYTHING = {"st", "st.hookspecs"}
BOX, GAP, FLOOR = (150, 46), 14, 96
EDGE = 30


def modules() -> dict[str, Path]:
    """Every module of the core by its name, templates left out."""
    found = {}
    for file in sorted(CORE.rglob("*.py")):
        parts = ("st", *file.relative_to(CORE).with_suffix("").parts)
        if "templates" not in parts:
            found[".".join(parts).removesuffix(".__init__")] = file
    return found


def imports(module: str, file: Path, known: Mapping[str, Path]) -> Iterator[str]:
    """The modules of the core that a file imports, in functions and for types too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            while name and name not in known:
                name = name.rpartition(".")[0]
            if name and name != module:
                yield name


def room_of(module: str, file: Path) -> str:
    """The folder that a module lies in; a module of the hall is a room of its own."""
    if file.name == "__init__.py":
        return module
    folder = module.rpartition(".")[0]
    return module if folder == "st" else folder


def rooms() -> dict[str, set[str]]:
    """Each room, and the rooms that it imports."""
    known = modules()
    found: dict[str, set[str]] = {}
    for module, file in known.items():
        if module in NAMES_EVERYTHING or (file.name == "__init__.py" and module.startswith("st.testing")):
            continue
        room = room_of(module, file)
        there = {room_of(name, known[name]) for name in imports(module, file, known)}
        found.setdefault(room, set()).update(there - NAMES_EVERYTHING - {room})
    return found


def floors(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Rooms by floor: the lowest import nothing, the others lie just above the highest room that they import."""
    height: dict[str, int] = {}
    for room in TopologicalSorter(graph).static_order():
        height[room] = 1 + max((height[below] for below in graph.get(room, ())), default=-1)
    return [sorted(room for room in height if height[room] == floor) for floor in range(max(height.values()) + 1)]


def drawn(graph: Mapping[str, set[str]]) -> str:
    """The rooms as a picture: one box each, a line to each folder that is imported and not reached through another."""
    levels = floors(graph)
    width = max(len(level) for level in levels) * (BOX[0] + GAP) + 2 * EDGE
    tall = len(levels) * FLOOR + EDGE
    place = {
        room: (
            (width - len(level) * (BOX[0] + GAP) + GAP) / 2 + number * (BOX[0] + GAP),
            tall - (floor + 1) * FLOOR + (FLOOR - BOX[1]) / 2,
        )
        for floor, level in enumerate(levels)
        for number, room in enumerate(level)
    }
    lines = [
        f'<path d="M{place[room][0] + BOX[0] / 2:.0f} {place[room][1] + BOX[1]} L{place[below][0] + BOX[0] / 2:.0f} '
        f'{place[below][1]}"/>'
        for room in sorted(graph)
        for below in sorted(_direct(room, graph))
        if (CORE / Path(*below.split(".")[1:])).is_dir()
    ]
    boxes = [_box(room, *place[room]) for room in sorted(place)]
    style = (
        "rect{fill:#eef4fb;stroke:#4a76a8;rx:6}path{stroke:#9ab4d0;fill:none}"
        "text{font:13px sans-serif;fill:#1c2a3a;text-anchor:middle}text.small{font-size:10px;fill:#56687c}"
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {tall}">'
    ground = f'<rect width="{width}" height="{tall}" style="fill:#fff;stroke:none"/>'
    return "\n".join([head, f"<style>{style}</style>", ground, *lines, *boxes, "</svg>\n"])


def _box(room: str, x: float, y: float) -> str:
    name = room.removeprefix("st.").replace(".", " / ")
    files = [file for file in (CORE / Path(*room.split(".")[1:])).glob("*.py") if file.name != "__init__.py"]
    count = f"{len(files)} file{'s' * (len(files) != 1)}" if files else "one file"
    middle = x + BOX[0] / 2
    return (
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{BOX[0]}" height="{BOX[1]}"/>'
        f'<text x="{middle:.0f}" y="{y + 20:.0f}">{escape(name)}</text>'
        f'<text class="small" x="{middle:.0f}" y="{y + 36:.0f}">{count}</text>'
    )


def _direct(room: str, graph: Mapping[str, set[str]]) -> set[str]:
    """What a room imports, but for what its other imports lead to."""
    own = graph.get(room, set())
    return {one for one in own if not any(one in _reached(other, graph) for other in own if other != one)}


def _reached(room: str, graph: Mapping[str, set[str]]) -> set[str]:
    found: set[str] = set()
    waiting = list(graph.get(room, ()))
    while waiting:
        one = waiting.pop()
        if one not in found:
            found.add(one)
            waiting += graph.get(one, ())
    return found


if __name__ == "__main__":
    PICTURE.write_text(drawn(rooms()), encoding="utf-8")
