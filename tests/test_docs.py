"""The pages are true: generated parts are current, links lead somewhere, commands print what is shown."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from pages import blocks, is_heavy, is_like, run_page

from st.plugins.catalogue import write_known
from st.plugins.loading import hook_arguments

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])
READMES = sorted(ROOT.glob("plugins/*/*/README.md"))
RUN_FILES = sorted([*ROOT.glob("docs/run-files/*.toml"), *ROOT.glob("demo/*.toml")])


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def marked(pages: list[Path]) -> list[object]:
    """Pages as parameters; those that take long are run by `nox -s docs` only."""
    return [pytest.param(page, id=named(page), marks=[pytest.mark.heavy] * is_heavy(page)) for page in pages]


@pytest.mark.parametrize("page", marked([page for page in PAGES if any(b.language == "console" for b in blocks(page))]))
def test_commands_print_what_the_page_shows(page: Path, tmp_path: Path) -> None:
    assert run_page(page, tmp_path, ROOT) == []


@pytest.mark.parametrize("page", [*PAGES, *READMES], ids=named)
def test_blocks_are_valid(page: Path) -> None:
    for block in blocks(page):
        if block.language == "python":
            ast.parse(block.text)
        elif block.language == "toml":
            tomllib.loads(block.text)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_command_is_in_a_block_that_is_run(page: Path) -> None:
    assert [f"{named(page)}:{b.line}" for b in blocks(page) if b.language in ("sh", "bash", "shell", "")] == []


@pytest.mark.parametrize("page", [*PAGES, *READMES], ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S))
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]

    # The demo's picture is made by running it.
    made = {"docs/pictures/demo.png"}
    assert [t for t in targets if t and "://" not in t and t not in made and not (page.parent / t).exists()] == []


def test_every_page_is_reached_from_the_index() -> None:
    linked: set[Path] = set()
    waiting = [ROOT / "docs" / "index.md"]
    while waiting:
        page = waiting.pop()
        linked.add(page)
        targets = re.findall(r"\]\(([^)#\s]+\.md)", page.read_text(encoding="utf-8"))
        waiting += [t for t in ((page.parent / t).resolve() for t in targets) if t not in linked and t.exists()]

    assert [named(page) for page in PAGES if page.is_relative_to(ROOT / "docs") and page not in linked] == []


def test_sessions_that_pages_name_exist() -> None:
    noxfile = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    sessions = {node.name for node in noxfile.body if isinstance(node, ast.FunctionDef) and node.decorator_list}
    named_by_pages = {block.tags["session"] for page in PAGES for block in blocks(page) if "session" in block.tags}

    assert named_by_pages <= sessions


@pytest.mark.parametrize("file", RUN_FILES, ids=named)
def test_run_files_can_be_read(file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "st.cli", "train", str(file), "--dry-run", "--output", str(tmp_path / "out")]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("readme", READMES, ids=named)
def test_run_files_of_plugins_can_be_read(readme: Path, tmp_path: Path) -> None:
    run_files = [block for block in blocks(readme) if block.language == "toml"]
    (tmp_path / "run.toml").write_text(run_files[0].text if run_files else "")
    command = [sys.executable, "-m", "st.cli", "train", "run.toml", "--dry-run"]

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr


def test_every_hook_is_documented_with_its_arguments() -> None:
    page = (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")
    documented = {
        name: tuple(argument.partition(":")[0].strip() for argument in arguments.split(","))
        for name, arguments in re.findall(r"^## `(st_\w+)\(([^)]*)\)", page, flags=re.MULTILINE)
    }

    assert documented == hook_arguments()


def test_generated_blocks_are_current() -> None:
    from st.settings.reference import filled

    pages = {named(page): page.read_text(encoding="utf-8") for page in [*PAGES, *READMES]}

    # `st reference blocks --write FILE` brings one up to date.
    assert [name for name, text in pages.items() if filled(text) != text] == []


def test_known_plugins_are_those_of_this_tree() -> None:
    known = (ROOT / "core" / "src" / "st" / "plugins" / "known.toml").read_text(encoding="utf-8")

    # `nox -s known` writes it.
    assert known == write_known(sorted(ROOT.glob("plugins/*/*/pyproject.toml")))


@pytest.mark.parametrize(
    ("printed", "shown", "alike"),
    [
        ("one\ntwo\n", "one\ntwo", True),
        ("one\ntwo\n", "one", False),
        ("took 3.1 s", "took ... s", True),
        ("one\ntwo\nthree", "one\n...\nthree", True),
        ("one\nthree", "one\n...\nthree", True),
        ("one\ntwo", "one\n...", True),
        ("one", "one\n...", True),
        ("zero\none", "...\none", True),
        ("oneX", "one", False),
    ],
)
def test_dots_stand_for_any_text(printed: str, shown: str, alike: bool) -> None:
    assert is_like(printed, shown) is alike
