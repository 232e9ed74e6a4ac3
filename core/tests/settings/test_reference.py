"""Reference pages are written from the code, and files that hold them can be kept current."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from st.options import Options
from st.plugins.loading import hook_arguments
from st.settings.reference import ReferenceUnknown, describe, filled, hooks_page, options_page, options_table
from st.settings.schema import run_file_schema

Package = Callable[..., Path]


class Inner(Options):
    """A part of it."""

    count: int = Field(1, ge=1)
    """How many."""


class Everything(Options):
    """One of each."""

    drop: float = Field(0.5, gt=0, lt=1)
    """Fraction of tokens
    that skip."""
    first: int
    """First block, counted from 0."""
    mode: Literal["a", "b"] = "a"
    """One of two | no more."""
    sizes: tuple[Annotated[float, Field(ge=0)], ...] = ()
    """Some numbers."""
    seed: int | None = None
    """Seed."""
    inner: Inner | None = None
    """A part."""
    names: dict[str, str] = Field(default_factory=dict)
    """By name."""


def test_table_has_a_row_for_every_option() -> None:
    assert options_table("skip", Everything).splitlines() == [
        "| option | type | default | meaning |",
        "|---|---|---|---|",
        "| `skip.drop` | float (> 0, < 1) | `0.5` | Fraction of tokens that skip. |",
        "| `skip.first` | int | required | First block, counted from 0. |",
        '| `skip.mode` | `"a"` or `"b"` | `"a"` | One of two \\| no more. |',
        "| `skip.sizes` | list of float (\u2265 0) | `[]` | Some numbers. |",
        "| `skip.seed` | int | unset | Seed. |",
        "| `skip.inner` | table | unset | A part. |",
        "| `skip.inner.count` | int (\u2265 1) | `1` | How many. |",
        "| `skip.names` | table of string | `{}` | By name. |",
    ]


def test_every_section_of_the_core_has_a_page() -> None:
    page = options_page()

    assert "`optimizer.lr`" in page
    assert "`clip.norm`" in page
    assert "`dataset.url`" in page
    assert "| `steps` |" in page


def test_page_of_a_plugin_holds_its_options_and_what_it_brings(quill: Path, package: Package) -> None:
    source = '''
        import st

        class Pack:
            """Bring an optimizer."""

            class Options(st.Options):
                strength: float = 1.0
                """How strong."""

            def __init__(self, options): ...

            @st.hookimpl
            def st_register(self, register):
                register.add(st.OPTIMIZER, "mine", print, self.Options)
    '''
    package("st-pack", "1.0", {"st.v1.hooks": {"pack": "st_pack:Pack"}}, st_pack=source)

    assert "| `model.checkpoint` | string |" in options_page(["quill"])
    assert "| `pack.strength` | float |" in options_page(["pack"])
    assert '`[optimizer] kind = "mine"`' in options_page(["pack"])


def test_hooks_are_described_in_run_order() -> None:
    page = hooks_page()

    positions = [page.index(f"## `{name}(") for name in hook_arguments()]
    assert positions == sorted(positions)
    assert "## `st_step_end(run: Run, stats: StepStats) -> None`" in page


def test_block_is_brought_up_to_date_once(quill: Path) -> None:
    text = "before\n<!-- generated: st reference options quill -->\nold\n<!-- end -->\nafter\n"

    written = filled(text)

    assert "| `model.scale` | float | `1.0` | How large. |" in written
    assert "old" not in written
    assert written.startswith("before\n")
    assert written.endswith("<!-- end -->\nafter\n")
    assert filled(written) == written


def test_block_of_an_unknown_page_is_refused() -> None:
    with pytest.raises(ReferenceUnknown, match="st reference optoins quill: there is no such page"):
        filled("<!-- generated: st reference optoins quill -->\n<!-- end -->")


def test_schema_knows_the_sections_of_active_plugins(quill: Path) -> None:
    schema = run_file_schema(describe(["quill"]))

    properties = schema["properties"]
    assert set(properties["model"]["properties"]) == {"checkpoint", "scale"}
    assert properties["steps"]["description"] == "Optimizer steps to train for. Set this or epochs."
    assert properties["dataset"]["items"]["required"] == ["url"]
    assert schema["additionalProperties"] is False
    kinds = {variant["properties"]["kind"]["const"]: variant for variant in properties["optimizer"]["anyOf"]}
    assert "kind" not in kinds["adamw"].get("required", [])
    assert "kind" in kinds["sgd"]["required"]


def test_schema_refers_only_to_definitions_that_it_has(quill: Path) -> None:
    schema = run_file_schema(describe(["quill"]))

    def references(value: object) -> set[str]:
        if isinstance(value, dict):
            own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
            return own.union(*(references(item) for item in value.values()))
        return set().union(*map(references, value)) if isinstance(value, list) else set()

    assert references(schema) <= {f"#/$defs/{name}" for name in schema["$defs"]}
