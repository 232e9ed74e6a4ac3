"""Commands of packages are listed from metadata, imported when they are typed, and take no name silently."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from st.installing import install_command
from st.testing import CliResult, CommandTests

Package = Callable[..., Path]
Cli = Callable[..., CliResult]

GREET = '''
    from typing import Annotated

    import typer


    class Greet:
        """Greet somebody."""

        @staticmethod
        def command(name: Annotated[str, typer.Argument(help="Whom.")], loud: bool = False):
            if name == "nobody":
                import st

                raise st.StError("there is nobody", fix="name somebody")
            typer.echo(f"hello {name}")


    class Party:
        """Greet several people."""

        command = typer.Typer()


    @Party.command.command()
    def all():
        """Greet everybody."""
        typer.echo("hello all")


    @Party.command.command()
    def few():
        """Greet a few."""
        typer.echo("hello few")
'''


@pytest.fixture
def greet(package: Package) -> Path:
    return package(
        "st-greet", "1.0", {"st.v1.commands": {"greet": "st_greet:Greet", "party": "st_greet:Party"}}, st_greet=GREET
    )


def summarised(site: Path, name: str, summary: str) -> None:
    metadata = next(site.glob(f"{name.replace('-', '_')}-*.dist-info")) / "METADATA"
    metadata.write_text(metadata.read_text() + f"Summary: {summary}\n")


def test_a_command_is_listed_by_its_packages_summary_without_being_imported(package: Package, st_cli: Cli) -> None:
    site = package("st-never", "1.0", {"st.v1.commands": {"never": "st_never:Never"}}, st_never="raise SystemExit(9)")
    summarised(site, "st-never", "Do it never")

    result = st_cli("--help")

    assert result.code == 0
    assert "never Do it never (st-never)." in " ".join(result.out.split())


@pytest.mark.usefixtures("greet")
def test_a_function_is_typed_as_a_command_and_an_app_with_those_below_it(st_cli: Cli) -> None:
    assert st_cli("greet", "ann") == CliResult(0, "hello ann\n", "")
    assert st_cli("greet", "nobody") == CliResult(1, "", "Error: there is nobody\n  name somebody\n")
    assert "Greet somebody." in st_cli("greet", "--help").out
    assert st_cli("party", "all") == CliResult(0, "hello all\n", "")
    assert "Greet several people." in st_cli("party", "--help").out


def test_two_packages_with_one_name_are_told_apart_by_the_package(greet: Path, package: Package, st_cli: Cli) -> None:
    package("st-other", "2.0", {"st.v1.commands": {"greet": "st_other:Greet"}}, st_other=GREET.replace("hello", "bye"))

    result = st_cli("greet", "ann")

    assert result.code == 2
    assert result.err == (
        "Error: several packages provide command 'greet': st-greet 1.0 (commands) and st-other 2.0 (commands).\n"
        "  Type st st-greet:greet or st st-other:greet,\n"
        "  or pip uninstall st-greet or pip uninstall st-other\n"
    )
    assert st_cli("st-other:greet", "ann").out == "bye ann\n"
    assert "st-greet:greet" in st_cli("--help").out


def test_a_name_of_sts_own_is_not_taken_and_that_is_said(package: Package, st_cli: Cli) -> None:
    package("st-thief", "1.0", {"st.v1.commands": {"plugins": "st_thief:Greet"}}, st_thief=GREET)

    listed = st_cli("plugins")

    assert "st has a command of this name: type st st-thief:plugins" in listed.out
    assert "st-thief:plugins" in st_cli("--help").out
    assert st_cli("st-thief:plugins", "ann").out == "hello ann\n"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import doesnotexist", "failed to import: ModuleNotFoundError"),
        ("class Greet:\n    'No function.'", "Greet has no function or app named command."),
        ("class Greet:\n    @staticmethod\n    def command(): ...", "Greet has no docstring."),
    ],
)
def test_a_command_that_cannot_work_is_named_with_its_package(
    source: str, said: str, package: Package, st_cli: Cli
) -> None:
    package("st-broken", "0.2", {"st.v1.commands": {"broken": "st_broken:Greet"}}, st_broken=source)

    result = st_cli("broken")

    assert result.code == 2
    assert result.err.startswith("Error: plugin 'broken' (st-broken 0.2)") and said in result.err


def test_a_command_of_another_api_says_what_to_install(package: Package, st_cli: Cli) -> None:
    package("st-young", "3.0", {"st.v2.commands": {"young": "st_young:Young"}})

    result = st_cli("young")

    assert result.code == 2
    fix = install_command("st-core", "-U")
    assert f"speaks plugin API 2; this st speaks 1.\n  Fix: {fix}" in result.err


def test_a_command_takes_part_in_no_run(quill: Path, greet: Path, run_toml: Callable[[str], Path], st_cli: Cli) -> None:
    path = run_toml('plugins = ["quill", "greet"]\nsteps = 1\noutput = "out"\n[[dataset]]\nurl = "photos"')

    result = st_cli("train", path, "--dry-run")

    assert result.code == 2
    assert "plugin 'greet' (st-greet 1.0) is a command, which takes part in no run.\n  Type it: st greet" in result.err


def test_check_and_why_know_commands(greet: Path, monkeypatch: pytest.MonkeyPatch, st_cli: Cli) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(greet), os.environ.get("PYTHONPATH", "")]))

    assert st_cli("plugins", "check", "greet").out == "ok\n"
    assert "It is typed: st greet\n" in st_cli("plugins", "why", "greet").out
    assert st_cli("reference", "options", "greet").err.startswith("Error: 'greet' is a command, without settings.")


def test_help_imports_nothing_heavy_and_reads_no_package(greet: Path, tmp_path: Path) -> None:
    (greet / "st_greet.py").write_text("raise SystemExit('imported')\n")
    environment = os.environ | {"PYTHONPATH": str(greet)}
    code = (
        "import sys; from st.cli import run; run(['--help']); "
        "print(*(name for name in ('torch', 'numpy') if name in sys.modules))"
    )

    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)

    assert "greet" in done.stdout
    assert done.stdout.splitlines()[-1] == ""


HELLO = Path(__file__).parents[1] / "testing" / "plugins" / "hello.py"


class TestHello(CommandTests):
    plugin = f"{HELLO}:Hello"
