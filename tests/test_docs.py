"""The pages are true: generated parts are current, links lead somewhere, commands print what is shown."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from contextlib import ExitStack
from pathlib import Path

import pytest
from pages import Block, blocks, is_like, run_page
from readme_data import write_data

from st.plugins.catalogue import write_known
from st.plugins.loading import hook_arguments
from st.testing.runs import call_cli

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])
READMES = sorted(ROOT.glob("plugins/*/*/README.md"))
TEMPLATES = sorted(ROOT.glob("core/src/st/templates/*/README.md"))
RUN_FILES = sorted([*ROOT.glob("docs/run-files/*.toml"), *ROOT.glob("demo/*.toml")])

CHECKPOINT = {
    "config.json": {"_class_name": "SD3Transformer2DModel", "in_channels": 192},
    "model_index.json": {"_class_name": "Any", "unet": ["diffusers", "Any"], "transformer": ["diffusers", "Any"]},
}
"""What is looked at of a checkpoint before it is loaded."""
REFERENCE = re.compile(r'references = \["([^"]+)"\]')


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(block.language == "console" for block in blocks(page))], ids=named
)
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


@pytest.mark.parametrize("page", [ROOT / "README.md", *READMES, *RUN_FILES], ids=named)
def test_run_files_can_be_read(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = page.read_text(encoding="utf-8") if page.suffix == ".toml" else run_files_of(page)[0].text
    monkeypatch.chdir(tmp_path)
    changes = _write_what_is_named(text, tmp_path)

    done = call_cli("train", "run.toml", "--dry-run", *changes)

    assert done.err == ""
    assert done.code == 0


def _write_what_is_named(text: str, folder: Path) -> list[str]:
    """A run file and the files on this machine that it names; the settings that make small ones do."""
    settings, changes = tomllib.loads(text), []
    for number, dataset in enumerate(settings.get("dataset", ())):
        if ":" not in dataset["url"]:
            write_data(dataset, folder, ExitStack())
        if "num_frames" in dataset:
            changes += ["--set", f"dataset.{number}.num_frames=17"]
    for name in REFERENCE.findall(text):
        (folder / name).touch()
    if checkpoint := settings.get("model", {}).get("checkpoint"):
        (folder / checkpoint).mkdir(parents=True)
        for name, content in CHECKPOINT.items():
            (folder / checkpoint / name).write_text(json.dumps(content), encoding="utf-8")
    (folder / "run.toml").write_text(text, encoding="utf-8")
    return changes


@pytest.mark.parametrize("page", [*PAGES, *READMES, *TEMPLATES, *RUN_FILES], ids=named)
def test_examples_learn(page: Path) -> None:
    texts = [page.read_text(encoding="utf-8")] if page.suffix == ".toml" else [b.text for b in run_files_of(page)]

    # Random weights of pocket answer zero: beside them, an adapter has no gradient.
    for settings in map(tomllib.loads, texts):
        if "pocket" in settings.get("plugins", ()):
            assert settings.get("adapter", {}).get("kind") == "full" or "checkpoint" in settings.get("model", {})


def run_files_of(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language == "toml"]


def test_every_hook_is_documented_with_its_arguments() -> None:
    page = (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")
    documented = {
        name: tuple(argument.partition(":")[0].strip() for argument in arguments.split(","))
        for name, arguments in re.findall(r"^## `(st_\w+)\(([^)]*)\)", page, flags=re.MULTILINE)
    }

    assert documented == hook_arguments()


def test_the_tracker_of_the_page_is_the_template_s() -> None:
    page = next(b.text for b in blocks(ROOT / "docs" / "write-a-plugin.md") if b.tags.get("file") == "table.py")
    template = (ROOT / "core/src/st/templates/tracker/src/PACKAGE/tracker.py").read_text(encoding="utf-8")

    # `nox -s "template(tracker)"` holds the template to strict types.
    assert page == template.partition("\n\n")[2].replace("CLASS", "Table")


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
