"""How the core is laid out: rooms whose imports point down, none too large, each saying what it is for."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter

import pytest
from rooms import CORE, PICTURE, ROOT, drawn, floors, imports, modules, room_of, rooms

from st.plugins.builtin import MODULES

GROUND = {
    "st.errors",
    "st.options",
    "st.randomness",
    "st.importing",
    "st.installing",
    "st.spelling",
    "st.terminal",
    "st.notes",
    "st.progress",
}
MOST_FILES = 14


def test_rooms_import_downward_for_types_too() -> None:
    try:
        list(TopologicalSorter(rooms()).static_order())
    except CycleError as error:
        pytest.fail(f"these rooms import each other: {' -> '.join(error.args[1])}")


def test_a_circle_of_rooms_is_found() -> None:
    with pytest.raises(CycleError):
        floors({"a": {"b"}, "b": {"c"}, "c": {"a"}})


def test_imports_in_functions_and_for_types_count() -> None:
    known = modules()
    # The report writes its page inside a function, and names its console for types only.
    found = set(imports("st.report.pages", known["st.report.pages"], known))

    assert {"st.report.page.page", "st.report.console"} <= found


def test_the_ground_floor_imports_nothing_of_ours() -> None:
    graph = rooms()

    assert {room: graph[room] - GROUND for room in GROUND if graph[room] - GROUND} == {}


def test_the_mathematics_imports_the_hall_only() -> None:
    assert {room for room in rooms()["st.diffusion"] if room.count(".") != 1} == set()


def test_no_room_holds_more_than_14_files() -> None:
    folders = {file.parent for file in modules().values()}
    count = {str(f.relative_to(CORE)): len([p for p in f.glob("*.py") if p.name[0] != "_"]) for f in folders}

    assert {room: files for room, files in count.items() if files > MOST_FILES} == {}


def test_every_room_says_what_lives_there_what_it_imports_and_where_to_start() -> None:
    short = [
        str(file.relative_to(CORE))
        for module, file in modules().items()
        if file.name == "__init__.py" and module.count(".") and not module.startswith(("st.cli", "st.testing"))
        if (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").count("\n") < 2
    ]

    assert short == []


def test_only_builtin_names_what_comes_with_the_core() -> None:
    """Strategies of the core are found by name, as a plugin's are; their own room may build on them."""
    known = modules()
    stray = [
        f"{module} imports {name}"
        for module, file in known.items()
        if not module.startswith("st.testing") and module not in ("st", "st.plugins.builtin")
        for name in sorted(set(imports(module, file, known)) & set(MODULES))
        if room_of(module, file) != room_of(name, known[name])
    ]

    assert stray == []


def test_tests_lie_where_their_subject_does() -> None:
    tests = ROOT / "core" / "tests"
    folders = {file.parent.relative_to(tests) for file in tests.rglob("test_*.py")}

    assert sorted(str(folder) for folder in folders if not (CORE / folder).is_dir()) == []


def test_the_picture_of_the_layout_is_current() -> None:
    assert PICTURE.read_text(encoding="utf-8") == drawn(rooms()), "run: python tests/rooms.py"
