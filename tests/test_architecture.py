"""The shape of the tree: sizes, names, directions of imports, and what code may not contain."""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

from st.plugins.builtin import Builtin
from st.registrar import Registrar

ROOT = Path(__file__).parents[1]
CORE = ROOT / "core" / "src" / "st"
PLUGINS = sorted(file.parent for file in ROOT.glob("plugins/*/*/pyproject.toml"))


def python_files(*folders: Path) -> list[Path]:
    """Every Python file below these folders but for templates, which are nobody's code yet."""
    return sorted(file for folder in folders for file in folder.rglob("*.py") if CORE / "templates" not in file.parents)


CORE_FILES = python_files(CORE)
SOURCES = python_files(CORE, *(plugin / "src" for plugin in PLUGINS))
TESTS = python_files(ROOT / "core" / "tests", ROOT / "tests", *(plugin / "tests" for plugin in PLUGINS))
Finding = tuple[int, str]


def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def report(files: list[Path], find: Callable[[ast.Module], Iterator[Finding]]) -> list[str]:
    """``path:line what`` for everything that ``find`` yields."""
    return [f"{file.relative_to(ROOT)}:{line} {what}" for file in files for line, what in find(tree_of(file))]


def test_files_have_at_most_400_lines() -> None:
    files = [*SOURCES, *TESTS, ROOT / "noxfile.py"]
    long = {str(file.relative_to(ROOT)): len(file.read_text(encoding="utf-8").splitlines()) for file in files}

    assert {name: lines for name, lines in long.items() if lines > 400} == {}


def test_functions_have_at_most_60_lines() -> None:
    def find(tree: ast.Module) -> Iterator[Finding]:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > 60:
                    yield node.lineno, f"{node.name} has {lines} lines"

    assert report([*SOURCES, *TESTS], find) == []


def test_functions_take_at_most_5_positional_parameters() -> None:
    def find(tree: ast.Module) -> Iterator[Finding]:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
                count = len(names) - (names[:1] in (["self"], ["cls"]))
                if count > 5 and not is_command(node) and not is_autograd(node):
                    yield node.lineno, f"{node.name} takes {count}"

    def is_command(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
        # A command's parameters are what a user types, not what a caller orders.
        return any("typer" in ast.unparse(argument.annotation or ast.Constant("")) for argument in node.args.args)

    def is_autograd(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
        # Signatures that torch prescribes.
        return node.name in ("forward", "backward")

    assert report(SOURCES, find) == []


def test_no_module_has_a_name_that_says_nothing() -> None:
    forbidden = {"utils", "util", "common", "helpers", "helper", "base", "misc", "types"}

    assert [str(file) for file in SOURCES if forbidden & {file.stem, file.parent.name}] == []


def test_every_module_says_what_it_knows() -> None:
    assert [str(file.relative_to(ROOT)) for file in SOURCES if not ast.get_docstring(tree_of(file))] == []


def test_plugins_import_only_what_they_depend_on() -> None:
    stray = []
    for plugin in PLUGINS:
        project = tomllib.loads((plugin / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        needed = {"src": project["dependencies"], "tests": project.get("optional-dependencies", {}).get("testing", [])}
        allowed = {project["name"].replace("-", "_")}
        for folder, names in needed.items():
            allowed |= {re.split(r"[\s\[<>=!~;]", name, maxsplit=1)[0].replace("-", "_") for name in names}
            stray += [
                f"{file.relative_to(ROOT)}:{line} {name}"
                for file in python_files(plugin / folder)
                for line, name in imported(tree_of(file))
                if name.startswith("st_") and name.partition(".")[0] not in allowed
            ]

    assert stray == []


def test_core_contains_no_plugins_name() -> None:
    names = set()
    for plugin in PLUGINS:
        project = tomllib.loads((plugin / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        names |= {project["name"], project["name"].replace("-", "_")}
        for group, entries in project.get("entry-points", {}).items():
            names |= set(entries) if group.startswith("st.v") else set()
    # `hf` is also the hub's own program, which messages tell people to run; some programs that read files are sd-NAME.
    programs = r"(?!hf (?:auth|download)\b|sd-(?:scripts|webui))"
    # Of a plugin named after a library that the core stands on, only the package's name is the plugin's alone.
    core = tomllib.loads((ROOT / "core" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names -= {re.split(r"[\s\[<>=!~;]", name, maxsplit=1)[0] for name in core["dependencies"]}
    # A package of many strategies of one kind has the kind's own name.
    registrar = Registrar()
    Builtin().st_register(registrar)
    names -= {f"{strategy.kind}s" for strategy in registrar.strategies()}
    pattern = re.compile(rf"\b{programs}({'|'.join(map(re.escape, sorted(names)))})\b", re.IGNORECASE)

    found = [
        f"{file.relative_to(ROOT)}:{number} {match[0]}"
        for file in CORE_FILES
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if names and (match := pattern.search(line))
    ]

    assert found == []


def test_broad_except_stands_only_at_the_four_borders() -> None:
    borders = {
        CORE / "plugins" / "loading.py": "plugin import",
        CORE / "report" / "fanout.py": "tracker thread",
        CORE / "data" / "cache" / "encoder_run.py": "encoder worker",
        CORE / "cli" / "__init__.py": "top of the command line",
    }

    def find(tree: ast.Module) -> Iterator[Finding]:
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler):
                caught = ast.unparse(node.type) if node.type else "everything"
                if re.search(r"\b(everything|Exception|BaseException)\b", caught) and not reraises(node):
                    yield node.lineno, f"except {caught}"

    def reraises(node: ast.ExceptHandler) -> bool:
        # Cleaning up and raising again hides nothing.
        return isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None

    assert report([file for file in SOURCES if file not in borders], find) == []


def test_modules_hold_no_mutable_state() -> None:
    """A table in capitals is a constant; what is not meant to be one would be state."""
    mutable = ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp

    def find(tree: ast.Module) -> Iterator[Finding]:
        for node in tree.body:
            for target in targets_of(node):
                constant = isinstance(target, ast.Name) and (target.id.isupper() or target.id == "__all__")
                if isinstance(getattr(node, "value", None), mutable) and not constant:
                    yield node.lineno, f"{ast.unparse(target)} can be changed"
        for node in ast.walk(tree):
            if isinstance(node, ast.Global):
                yield node.lineno, f"global {', '.join(node.names)}"

    assert report(SOURCES, find) == []


def test_module_tables_are_never_written_to() -> None:
    changing = {"append", "extend", "insert", "add", "update", "setdefault", "pop", "clear", "remove", "discard"}

    def find(tree: ast.Module) -> Iterator[Finding]:
        tables = {target.id for node in tree.body for target in targets_of(node) if isinstance(target, ast.Name)}
        for node in ast.walk(tree):
            changed = None
            if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
                changed = node.value
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in changing:
                changed = node.func.value
            if isinstance(changed, ast.Name) and changed.id in tables:
                yield changed.lineno, f"{changed.id} is changed"

    assert report(SOURCES, find) == []


def targets_of(node: ast.stmt) -> list[ast.expr]:
    """What an assignment gives a value to."""
    if isinstance(node, ast.AnnAssign):
        return [node.target]
    return node.targets if isinstance(node, ast.Assign) else []


def test_tests_mock_nothing() -> None:
    def find(tree: ast.Module) -> Iterator[Finding]:
        for line, name in imported(tree):
            if name.startswith(("unittest.mock", "mock", "pytest_mock")):
                yield line, name
        for node in ast.walk(tree):
            if isinstance(node, ast.Name | ast.arg) and getattr(node, "id", getattr(node, "arg", "")) == "mocker":
                yield node.lineno, "mocker"

    assert report(TESTS, find) == []


def test_options_are_read_without_defaults() -> None:
    def find(tree: ast.Module) -> Iterator[Finding]:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
                owner = ast.unparse(node.args[0]) if node.args else ""
                if len(node.args) == 3 and re.search(r"\b(options|config)\b", owner):
                    yield node.lineno, ast.unparse(node)

    assert report(SOURCES, find) == []


def test_a_family_has_at_most_12_public_methods() -> None:
    from st.model.family import ModelFamily

    public = [name for name, value in inspect.getmembers(ModelFamily, inspect.isroutine) if not name.startswith("_")]
    public = [name for name in public if name not in ("path", "target")]

    assert len(public) <= 12, public


def test_the_loop_names_no_technique() -> None:
    text = (CORE / "train" / "loop.py").read_text(encoding="utf-8").lower()
    techniques = ["lora", "ema", "huber", "snr", "mask", "offset", "perturb", "recompute", "quanti", "teacher"]
    techniques += [plugin.name for plugin in PLUGINS]

    assert [name for name in techniques if re.search(rf"\b{name}", text)] == []


def imported(tree: ast.Module) -> Iterator[Finding]:
    """(line, module) of every import in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module
