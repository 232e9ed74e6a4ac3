"""Every check and task there is. Continuous integration and the README only call these sessions.

``nox -l`` lists them, ``nox -s tests`` runs one, ``nox -s "plugin(pocket)"`` runs one of several alike. A session makes
its own environment and installs into it, with pip, at the versions of ``constraints.txt``; ``nox -r`` uses the
environment of the last time again.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import nox
import nox.project
from packaging.version import Version

ROOT = Path(__file__).parent
CORE = ROOT / "core"
PLUGINS = {folder.parent.name: folder.parent for folder in sorted(ROOT.glob("plugins/*/*/pyproject.toml"))}
KINDS = ("model", "backend", "tracker", "hook", "command")
CONSTRAINTS = ("-c", str(ROOT / "constraints.txt"))
BUILD_TOOLS = ("hatchling", "editables")
TEST_TOOLS = ("pytest", "pytest-xdist")
PICTURES = ("scikit-image", "scikit-learn")

nox.options.default_venv_backend = "virtualenv"
nox.options.sessions = ["lint", "types", "tests"]
nox.options.error_on_missing_interpreters = True


@nox.session(venv_backend="none", default=False)
def install(session: nox.Session) -> None:
    """Put st and plugins into an environment to work in: ``-- flux sdxl``, ``-- all``, ``-- --into DIR flux``.

    The environment is the folder .venv of this clone, or DIR; it is made where it does not exist. Plugins are named as
    their folders are, and installed editable, with those that they need.
    """
    words = list(session.posargs)
    into = ROOT / ".venv"
    if "--into" in words:
        at = words.index("--into")
        into = Path(words[at + 1] if at + 1 < len(words) else session.error("--into: which folder?")).resolve()
        del words[at : at + 2]
    unknown = [word for word in words if word != "all" and word not in PLUGINS]
    if unknown:
        session.error(f"no plugin here is named {', '.join(map(repr, unknown))}. There are: {', '.join(PLUGINS)}.")
    folders = list(PLUGINS.values()) if "all" in words else [PLUGINS[word] for word in words]
    scripts = into / ("Scripts" if os.name == "nt" else "bin")
    if not (into / "pyvenv.cfg").is_file():
        session.run(sys.executable, "-m", "venv", str(into))
    python, wanted = str(scripts / "python"), _editable([CORE, *_with_needed(folders)])
    session.run(python, "-m", "pip", "install", *CONSTRAINTS, *BUILD_TOOLS, *PICTURES, external=True)
    session.run(python, "-m", "pip", "install", *CONSTRAINTS, "--no-build-isolation", *wanted, external=True)
    session.run(str(scripts / "st"), "plugins", external=True)
    activate = scripts / "activate" if os.name == "nt" else f"source {shlex.quote(str(scripts / 'activate'))}"
    session.log(f"st is in {scripts}; to have it on the path of this shell: {activate}")


@nox.session
def demo(session: nox.Session) -> None:
    """Train a model on real photographs, then an adapter, and say where the report is."""
    _install(session, PICTURES, _with_needed([PLUGINS["pocket"]]))
    session.run("python", "demo/run.py", *session.posargs, env=_quiet(threads=None))


@nox.session
def tests(session: nox.Session) -> None:
    """Everything that continuous integration runs: core, all plugins installed together, the repository's rules."""
    _install(session, (*TEST_TOOLS, *PICTURES, *BUILD_TOOLS), list(PLUGINS.values()))
    arguments = session.posargs or ["-n", "2", "--dist", "loadfile"]
    session.run("python", "-m", "pytest", *arguments, env=_quiet())


@nox.session
@nox.parametrize("name", list(PLUGINS), ids=list(PLUGINS))
def plugin(session: nox.Session, name: str) -> None:
    """One plugin beside the core alone: its tests."""
    _install(session, TEST_TOOLS, _with_needed([PLUGINS[name]]))
    session.run("python", "-m", "pytest", "-m", "", str(PLUGINS[name] / "tests"), *session.posargs, env=_quiet())


@nox.session
@nox.parametrize("kind", KINDS, ids=KINDS)
def template(session: nox.Session, kind: str) -> None:
    """A generated plugin as a stranger would publish it: its wheel is found, passes its tests, takes part in a run."""
    scratch = Path(session.create_tmp()).resolve()
    session.install(*CONSTRAINTS, *BUILD_TOOLS, *TEST_TOOLS, "mypy", "ruff")
    wheels = _build(session, [CORE, *_with_needed([PLUGINS["pocket"]])], scratch / "wheels")
    _install_wheels(session, wheels)
    name = f"my-{kind}"
    folder = scratch / f"st-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    session.run("st", "new", kind, name, str(folder))
    _install_wheels(session, _build(session, [folder], scratch / "dist"))
    session.chdir(folder)
    session.run("ruff", "check", "--no-respect-gitignore", ".")
    session.run("ruff", "format", "--check", "--no-respect-gitignore", ".")
    session.run("mypy", "src")
    session.run("st", "plugins", "check", name)
    session.run("python", "-m", "pytest", env=_quiet())
    session.run("python", str(ROOT / "tests" / "take_part.py"), "README.md", env=_quiet())


@nox.session
@nox.parametrize("name", list(PLUGINS), ids=list(PLUGINS))
def alone(session: nox.Session, name: str) -> None:
    """One plugin as a stranger installs it: its wheel beside core's is found, passes its tests, takes part in a run.

    What only its tests need is installed too, and for the run of its README the family that it trains.
    """
    folder, scratch = PLUGINS[name], Path(session.create_tmp()).resolve()
    session.install(*CONSTRAINTS, *BUILD_TOOLS, *TEST_TOOLS)
    plugins, for_tests = _with_needed_by_tests([folder])
    _install_wheels(session, _build(session, [CORE, *plugins], scratch / "wheels"), *for_tests)
    session.run("python", "-m", "pip", "check")
    # Nothing is importable from here but what is installed.
    elsewhere = scratch / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    session.chdir(elsewhere)
    for entry in _entries(folder):
        session.run("st", "plugins", "check", entry)
    where = ("-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), str(folder / "tests"))
    session.run("python", "-m", "pytest", "-m", "", "-p", "no:cacheprovider", *where, *session.posargs, env=_quiet())
    families = [plugin for plugin in _with_needed(_named_by_run_file(folder)) if plugin not in plugins]
    if families:
        _install_wheels(session, _build(session, families, scratch / "families"))
    session.run("python", str(ROOT / "tests" / "take_part.py"), str(folder / "README.md"), env=_quiet())


@nox.session
def minimums(session: nox.Session) -> None:
    """Core and plugins at the lowest versions that their metadata allows.

    Torch stays at the tested version unless ``-- torch`` is given: older builds are gigabytes that few machines need.
    """
    folders = [CORE, *PLUGINS.values()]
    lowest = _lowest(folders)
    if "torch" not in session.posargs:
        lowest["torch"] = _tested("torch")
    pins = [f"{name}=={version}" for name, version in lowest.items()]
    _, for_tests = _with_needed_by_tests(list(PLUGINS.values()))
    session.install(*TEST_TOOLS, *BUILD_TOOLS, *for_tests, *pins)
    session.install("--no-build-isolation", "--no-deps", *_editable(folders))
    session.run("python", "-m", "pytest", "core/tests", "plugins", "-n", "2", "--dist", "loadfile", env=_quiet())


@nox.session
def lint(session: nox.Session) -> None:
    """Style and format; ``-- --fix`` mends what can be mended."""
    session.install(*CONSTRAINTS, "ruff")
    fix = "--fix" in session.posargs
    session.run("ruff", "check", *(["--fix"] if fix else []))
    session.run("ruff", "format", *([] if fix else ["--check"]))


@nox.session
def types(session: nox.Session) -> None:
    """Strict types of the core and of every plugin."""
    _install(session, ("mypy", "pytest"), list(PLUGINS.values()))
    session.run("mypy", "core/src/st", *(str(folder / "src") for folder in PLUGINS.values()))


@nox.session
def docs(session: nox.Session) -> None:
    """Generated pages are current, every link leads somewhere, every command and run file of the pages works."""
    _install(session, (*TEST_TOOLS, *PICTURES, *BUILD_TOOLS), list(PLUGINS.values()))
    session.run("python", "-m", "pytest", "tests/test_docs.py", *session.posargs, env=_quiet())


@nox.session
def identical(session: nox.Session) -> None:
    """Twenty steps of each tiny family against stored losses: a refactor may not move a digit."""
    _install(session, TEST_TOOLS, list(PLUGINS.values()))
    session.run("python", "tests/identical.py", *session.posargs, env=_quiet())


@nox.session
def crash(session: nox.Session) -> None:
    """Kill a run at random moments and resume it: final weights equal those of an uninterrupted run."""
    named = [PLUGINS[name] for name in ("pocket", "optimizers", "quanto")]
    _install(session, (*TEST_TOOLS, *PICTURES), _with_needed(named))
    session.run("python", "tests/crash.py", *(session.posargs or ["--kills", "100"]), env=_quiet())


@nox.session
def interop(session: nox.Session) -> None:
    """Every kind of update in every format of Flux, SDXL and Wan at full size, against what other programs know."""
    _install(session, (), [PLUGINS[name] for name in ("flux", "sdxl", "wan")])
    session.run("python", "tests/interop.py", env=_quiet())


@nox.session
def attack(session: nox.Session) -> None:
    """Malformed files, signals, closed streams, full disks, secrets and flipped bits: what st does, counted."""
    named = [PLUGINS[name] for name in ("pocket", "flux", "s3")]
    _install(session, TEST_TOOLS, _with_needed(named))
    session.run("python", "tests/attack.py", *session.posargs, env=_quiet())


@nox.session
def s3(session: nox.Session) -> None:
    """Train the demo from S3 over a network that spoils requests: final weights equal those of a run from a disk."""
    _install(session, (*TEST_TOOLS, *PICTURES), _with_needed([PLUGINS["pocket"], PLUGINS["s3"]]))
    session.run("python", "tests/s3_demo.py", *session.posargs, env=_quiet())


@nox.session
def matrix(session: nox.Session) -> None:
    """Every combination of family, adapter, technique and quantizer on tiny checkpoints; writes its page."""
    _install(session, TEST_TOOLS, list(PLUGINS.values()))
    arguments = session.posargs or ["--write"]
    session.run("python", "tests/combinations.py", *arguments, env=_quiet())


@nox.session
def bench(session: nox.Session) -> None:
    """How fast it is, as ratios against bare loops; writes one JSON file and one table."""
    _install(session, PICTURES, list(PLUGINS.values()))
    session.run("python", "benchmarks/run.py", *session.posargs, env=_quiet())


@nox.session
def known(session: nox.Session) -> None:
    """Write the names of this tree's plugins into the core, which suggests them where one is not installed."""
    _install(session, (), [])
    code = (
        "import pathlib, sys; from st.plugins.catalogue import write_known; "
        "pathlib.Path(sys.argv[1]).write_text(write_known(map(pathlib.Path, sys.argv[2:])), encoding='utf-8')"
    )
    files = [str(folder / "pyproject.toml") for folder in PLUGINS.values()]
    session.run("python", "-c", code, "core/src/st/plugins/known.toml", *files)


@nox.session
def wheels(session: nox.Session) -> None:
    """Build every distribution into dist/ and install them together into this clean environment."""
    session.install(*CONSTRAINTS, *BUILD_TOOLS)
    built = _build(session, [CORE, *PLUGINS.values()], ROOT / "dist")
    _install_wheels(session, built)
    session.run("python", "-m", "pip", "check")
    session.run("st", "--version")
    session.run("st", "plugins", "check")


def _install(session: nox.Session, packages: tuple[str, ...], plugins: list[Path]) -> None:
    """Core and plugins as editable installs, built by the pinned tools, with everything they depend on."""
    session.install(*CONSTRAINTS, *BUILD_TOOLS, *packages)
    for_tests: list[str] = []
    if "pytest" in packages:
        plugins, for_tests = _with_needed_by_tests(plugins)
    session.install(*CONSTRAINTS, "--no-build-isolation", *for_tests, *_editable([CORE, *plugins]))
    _uninstall_strangers(session, {_distribution(folder) for folder in (CORE, *plugins)})


def _uninstall_strangers(session: nox.Session, wanted: set[str]) -> None:
    """In an environment used again: take out what an earlier state of the tree had installed."""
    listing = session.run("python", "-m", "pip", "list", "--format=json", silent=True, stderr=None)
    installed = {item["name"] for item in json.loads(str(listing or "[]"))}
    strangers = sorted(name for name in installed if name.startswith("st-") and name not in wanted)
    if strangers:
        session.run("python", "-m", "pip", "uninstall", "--yes", *strangers)


def _editable(folders: list[Path]) -> list[str]:
    return [argument for folder in folders for argument in ("-e", str(folder))]


def _build(session: nox.Session, folders: list[Path], destination: Path) -> list[str]:
    """Wheels of these folders, built without the network by the tools already in the environment."""
    before = set(destination.glob("*.whl")) if destination.exists() else set()
    for wheel in before:
        wheel.unlink()
    session.run(
        *("python", "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(destination)),
        *map(str, folders),
    )
    return sorted(str(wheel) for wheel in destination.glob("*.whl"))


def _install_wheels(session: nox.Session, wheels: list[str], *packages: str) -> None:
    """These wheels and what they need, and further packages."""
    session.install(*CONSTRAINTS, *wheels, *packages)
    # An environment used again may hold the same version of an earlier state of the tree.
    session.install("--force-reinstall", "--no-deps", *wheels)


def _project(folder: Path) -> dict[str, object]:
    project: dict[str, object] = nox.project.load_toml(folder / "pyproject.toml")["project"]
    return project


def _distribution(folder: Path) -> str:
    return str(_project(folder)["name"])


def _entries(folder: Path) -> list[str]:
    """The names by which a package's plugins are found, each with its kind."""
    groups = _project(folder)["entry-points"]
    assert isinstance(groups, dict)
    return [f"{group.removeprefix('st.v1.')}:{name}" for group, names in groups.items() for name in names]


def _named_by_run_file(folder: Path) -> list[Path]:
    """The plugins of this tree that the first run file of a package's README lists."""
    found = re.search(r"^plugins = (\[.*\])", (folder / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    named = set(json.loads(found[1]) if found else ())
    owners = {entry.partition(":")[2]: folder for folder in PLUGINS.values() for entry in _entries(folder)}
    return [owners[name] for name in sorted(named & owners.keys())]


def _requirements(folder: Path) -> list[str]:
    requirements = _project(folder).get("dependencies", [])
    assert isinstance(requirements, list)
    return requirements


def _optional(folder: Path) -> list[str]:
    """What a package's extras for users ask for."""
    extras = _project(folder).get("optional-dependencies", {})
    assert isinstance(extras, dict)
    return [requirement for name, needs in extras.items() if name != "testing" for requirement in needs]


def _extra(folder: Path, name: str) -> list[str]:
    """What a package's extra asks for; nothing where it has no such extra."""
    extras = _project(folder).get("optional-dependencies", {})
    assert isinstance(extras, dict)
    return list(extras.get(name, []))


def _with_needed(folders: list[Path]) -> list[Path]:
    """These plugins and the plugins of this tree that they depend on."""
    by_name = {_distribution(folder): folder for folder in PLUGINS.values()}
    found: list[Path] = []
    waiting = list(folders)
    while waiting:
        folder = waiting.pop()
        if folder not in found:
            found.append(folder)
            names = [re.split(r"[\s\[<>=!~;]", requirement, maxsplit=1)[0] for requirement in _requirements(folder)]
            waiting += [by_name[name] for name in names if name in by_name]
    return found


def _with_needed_by_tests(folders: list[Path]) -> tuple[list[Path], list[str]]:
    """These plugins with those of this tree that their tests need, and what else their tests need."""
    own = {_distribution(folder): folder for folder in PLUGINS.values()}
    wanted = [need for folder in folders for need in _extra(folder, "testing")]
    plugins = list(dict.fromkeys([*folders, *(own[need] for need in wanted if need in own)]))
    return _with_needed(plugins), [need for need in wanted if need not in own]


def _lowest(folders: list[Path]) -> dict[str, str]:
    """The lowest version of each dependency that all of these packages take: of ``name>=x``, the largest x."""
    found: dict[str, str] = {}
    for requirement in (need for folder in folders for need in (*_requirements(folder), *_optional(folder))):
        bound = re.match(r"([\w.-]+)\s*(?:\[.*\])?>=\s*([\w.]+)", requirement)
        if bound and not bound[1].startswith("st-"):
            found[bound[1]] = max(found.get(bound[1], "0"), bound[2], key=Version)
    return found


def _tested(name: str) -> str:
    """The version of a package in ``constraints.txt``."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return next(line.removeprefix(f"{name}==") for line in lines if line.startswith(f"{name}=="))


def _quiet(threads: int | None = 1) -> dict[str, str | None]:
    """What a session sees: no hub, no ST_ settings of the person who runs it, one thread where tests share cores."""
    environment: dict[str, str | None] = {name: None for name in os.environ if name.startswith("ST_")}
    environment |= {"HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "0", "PYTHONPATH": None}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    return environment
