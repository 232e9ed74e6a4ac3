"""What is installed is known from metadata alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from st.errors import PluginError
from st.installing import install_command
from st.plugins.catalogue import Catalogue, Installed, Known, parse_brought, parse_known, write_known

Package = Callable[..., Path]


def installed(name: str, kind: str = "hooks", distribution: str = "", api: int = 1) -> Installed:
    return Installed(name, kind, distribution or f"st-{name}", "1.0", f"st_{name}:Plugin", api)  # type: ignore[arg-type]


def refusal(catalogue: Catalogue, name: str) -> str:
    with pytest.raises(PluginError) as raised:
        catalogue.find(name)
    return str(raised.value)


def test_scan_finds_every_kind_and_imports_nothing(package: Package) -> None:
    groups = {f"st.v1.{kind}": {f"n{kind}": "st_never:Never"} for kind in ("models", "backends", "trackers", "hooks")}
    package("st-never", "1.5", groups, st_never="raise SystemExit('imported')")

    found = {plugin.name: plugin for plugin in Catalogue.scan().usable if plugin.distribution == "st-never"}

    assert {name: plugin.kind for name, plugin in found.items()} == {
        "nmodels": "models",
        "nbackends": "backends",
        "ntrackers": "trackers",
        "nhooks": "hooks",
    }
    assert found["nhooks"].label == "plugin 'nhooks' (st-never 1.5)"


def test_other_api_majors_are_recognised_and_not_usable(package: Package) -> None:
    package("st-never", "1.5", {"st.v0.hooks": {"older": "a:B"}, "st.v2.hooks": {"newer": "a:B"}})

    catalogue = Catalogue.scan()

    assert {plugin.name: plugin.api for plugin in catalogue.everything if plugin.distribution == "st-never"} == {
        "older": 0,
        "newer": 2,
    }
    assert not {"older", "newer"} & set(catalogue.names())


def test_what_a_missing_plugin_brings_is_pointed_at_it_with_how_to_install_it() -> None:
    known = (
        '[hooks]\n"sums" = "st-sums"\n[brings.optimizer]\n"adder" = ["sums", ""]\n"plus" = ["sums", "kind = \'adder\'"]'
    )
    catalogue = Catalogue([], parse_known(known), parse_brought(known))

    assert catalogue.brings("optimizer", "adder") == (
        f"The plugin 'sums' brings it: add 'sums' to plugins. It is not installed: {install_command('st-sums')}"
    )
    assert catalogue.brings("optimizer", "plus", ["sums"]) == "Write kind = 'adder'."
    assert catalogue.brings("adapter", "adder") == ""


def test_other_groups_are_left_alone(package: Package) -> None:
    package(
        "st-never",
        "1.5",
        {"st.v1.spoons": {"a": "a:B"}, "console_scripts": {"b": "a:B"}, "best.v1.hooks": {"c": "a:B"}},
    )

    assert [plugin for plugin in Catalogue.scan().everything if plugin.distribution == "st-never"] == []


def test_name_in_two_kinds_is_told_apart_by_the_kind() -> None:
    catalogue = Catalogue([installed("twin", "models", "st-a"), installed("twin", "hooks", "st-b")], [])

    assert refusal(catalogue, "twin") == (
        "several packages provide plugin 'twin': st-a 1.0 (models) and st-b 1.0 (hooks).\n"
        "  Say 'models:twin' or 'hooks:twin'."
    )
    assert catalogue.find("models:twin").distribution == "st-a"


def test_name_in_one_kind_from_two_packages_names_both() -> None:
    catalogue = Catalogue([installed("twin", "hooks", "st-a"), installed("twin", "hooks", "st-b")], [])

    assert "st-a 1.0 (hooks) and st-b 1.0 (hooks)" in refusal(catalogue, "twin")
    assert "pip uninstall st-a or pip uninstall st-b" in refusal(catalogue, "twin")


def test_installed_name_is_suggested_before_one_that_is_not() -> None:
    catalogue = Catalogue([installed("quill")], [Known("quilt", "hooks", "st-quilt")])

    assert refusal(catalogue, "quil").endswith("Did you mean 'quill'?")


def test_name_like_no_other_is_answered_with_the_list() -> None:
    assert refusal(Catalogue([installed("quill")], []), "zzz") == "no plugin is named 'zzz'.\n  Installed: quill."
    assert refusal(Catalogue([], []), "zzz") == "no plugin is named 'zzz'.\n  None is installed."


def test_known_plugins_survive_being_written(tmp_path: Path) -> None:
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text(
        '[project]\nname = "st-quill"\n[project.entry-points."st.v1.models"]\nquill = "st_quill:Quill"\n'
        '[project.entry-points."st.v1.hooks"]\n"quill-extra" = "st_quill:Extra"\n'
    )

    text = write_known([pyproject])

    assert parse_known(text) == [Known("quill", "models", "st-quill"), Known("quill-extra", "hooks", "st-quill")]
