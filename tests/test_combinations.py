"""A sample of the table of combinations; ``python tests/combinations.py`` tries them all."""

from __future__ import annotations

from pathlib import Path

import combinations
import families
import pytest
from combinations import Bench
from combinations_axes import Axes, Cell, Row, Verdict
from combinations_page import PAGE, kept, page

from st.testing.runs import call_cli, write_photos

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:diffusers.*")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("combinations"))


@pytest.fixture(scope="module")
def axes() -> Axes:
    return Axes.discover()


def _row(axes: Axes, axis: str, name: str) -> Row:
    return next(row for row in axes.rows[axis] if row.name == name)


@pytest.mark.parametrize(
    ("family", "adapter", "technique"),
    [("flux", "LoRA, DoRA", "moving average"), ("sdxl", "full", None)],
)
def test_what_the_table_calls_working_works(
    bench: Bench, axes: Axes, family: str, adapter: str, technique: str | None
) -> None:
    row = _row(axes, "technique", technique) if technique else None

    assert bench.verdict(Cell(family, _row(axes, "adapter", adapter), row)) == Verdict("works")


def test_a_contradiction_is_refused_in_the_words_of_its_message(bench: Bench) -> None:
    row = Row("odd", text='[adapter]\nkind = "lora"\ninit = "orthogonal"\nrank = 3')

    verdict = bench.verdict(Cell("flux", row))

    assert verdict.status == "refused"
    assert "needs even ranks" in verdict.reason


def test_a_file_that_gives_other_answers_fails(bench: Bench, axes: Axes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(combinations, "TOLERANCE", -1.0)

    verdict = bench.verdict(Cell("flux", _row(axes, "adapter", "LoRA")))

    assert verdict.status == "fails"
    assert "off" in verdict.reason


def test_every_installed_adapter_and_quantizer_has_a_row(axes: Axes) -> None:
    cells = {cell.name for cell in axes.cells(["flux", "sdxl"])}

    assert {"flux + LoRA", "sdxl + full", "flux + full + recompute"} <= cells
    assert len(cells) == len(list(axes.cells(["flux", "sdxl"])))
    for axis in ("adapter", "quantizer"):
        names = [row.name for row in axes.rows[axis]]
        assert len(set(names)) == len(names)


def test_the_page_numbers_each_reason_once(tmp_path: Path) -> None:
    lora, full = Row("LoRA"), Row("full")
    verdicts = {
        Cell("flux", lora): Verdict("works"),
        Cell("sdxl", lora): Verdict("refused", "no"),
        Cell("flux", full): Verdict("refused", "no"),
        Cell("sdxl", full, Row("TREAD")): Verdict("fails", "worse"),
    }

    lines = page(verdicts, {"gone": "broken"}).splitlines()

    assert "| LoRA | works | refused [1] |" in lines
    assert "| full | refused [1] |  |" in lines
    assert "| TREAD (full) |  | **fails** [2] |" in lines
    assert lines[-3:] == ["1. no", "2. worse", "- not tried: `gone` cannot be loaded where this was written: broken"]


def test_plugins_may_be_named_on_the_command_line_alone(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    checkpoint, photos = tmp_path / "tiny", write_photos(tmp_path / "photos")
    file.write_text(
        f'output = "{tmp_path}/out"\nsteps = 2\nprecision = "fp32"\ndevice = "cpu"\n'
        f'[model]\ncheckpoint = "{checkpoint}"\nmax_tokens = 48\n'
        f'[[dataset]]\nurl = "{photos}"\nresolution = 64\nalign = 16\n'
        "[tread]\ndrop = 0.5\nfirst = 0\nlast = -2\n"
    )
    assert call_cli("tiny", "flux", checkpoint).code == 0

    done = call_cli("train", file, "--plugins", "flux,tread")

    assert done.code == 0, done.err
    assert "of the tokens skip blocks" in done.out + done.err


def test_every_family_was_tried_and_the_page_says_what_was_found(axes: Axes) -> None:
    verdicts = kept(axes)

    assert {cell.family for cell in verdicts} == set(combinations.families())
    assert [cell.name for cell in axes.cells(combinations.families()) if cell not in verdicts] == []
    assert [cell.name for cell, verdict in verdicts.items() if verdict.status == "fails"] == []
    assert PAGE.read_text(encoding="utf-8") == page(verdicts, axes.absent), "run: python tests/combinations.py --write"


def test_the_table_of_families_is_current(bench: Bench) -> None:
    text = families.PAGE.read_text(encoding="utf-8")

    assert text == families.page(text, bench.folder), "run: python tests/families.py"
