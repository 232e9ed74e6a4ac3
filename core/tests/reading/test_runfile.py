"""What a user wrote, wherever it was written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from st.reading.runfile import RunFile, RunFileUnreadable, read

RunToml = Callable[[str], Path]


def problems(run_file: RunFile) -> list[str]:
    return [problem.what for problem in run_file.problems]


def test_overrides_go_over_the_environment_and_that_over_the_file(run_toml: RunToml) -> None:
    path = run_toml("steps = 1\n[optimizer]\nlr = 1.0\nbeta1 = 0.5\nbeta2 = 0.5\n")

    run_file = read(
        path, ["optimizer.lr=3e-4"], {"ST_OPTIMIZER__LR": "2.0", "ST_OPTIMIZER__BETA1": "0.9", "OTHER": "x"}
    )

    assert run_file.data == {"steps": 1, "optimizer": {"lr": 3e-4, "beta1": 0.9, "beta2": 0.5}}
    assert run_file.setting(("optimizer", "lr"), 3e-4) == "--set optimizer.lr=0.0003"
    assert run_file.setting(("optimizer", "beta1"), 0.9) == "ST_OPTIMIZER__BETA1=0.9"
    assert run_file.setting(("optimizer", "beta2"), 0.5) == "run.toml:5: [optimizer] beta2 = 0.5"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("1e-4", 1e-4),
        ("true", True),
        ("[1, 2]", [1, 2]),
        ('"1"', "1"),
        ("a/b c", "a/b c"),
        ("", ""),
        ("2024-01-01", "2024-01-01"),
        ("1\nother = 2", "1\nother = 2"),
        ("a=b", "a=b"),
    ],
)
def test_value_is_toml_or_else_text(text: str, value: object) -> None:
    assert read(None, [f"a.b={text}"]).data == {"a": {"b": value}}


def test_lists_are_addressed_by_number_and_grow_by_one(run_toml: RunToml) -> None:
    path = run_toml('[[dataset]]\nurl = "a"\n')

    run_file = read(path, ["dataset.0.url=b", "dataset.1.url=c"], {})

    assert run_file.data == {"dataset": [{"url": "b"}, {"url": "c"}]}
    assert problems(read(path, ["dataset.3.url=c"])) == ["--set dataset.3.url: dataset is a list of 1, counted from 0."]
    assert problems(read(path, ["dataset.0.url.x=c"])) == [
        "--set dataset.0.url.x: dataset.0.url is 'a', which has no settings in it."
    ]


def test_override_without_a_value_is_refused() -> None:
    assert problems(read(None, ["steps"])) == ["--set 'steps' is not KEY=VALUE, as in --set optimizer.lr=1e-4."]


def test_placeholders_are_filled_in_and_remembered(run_toml: RunToml) -> None:
    path = run_toml('[hub]\ntoken = "{env:TOKEN}"\n[[dataset]]\nurl = "file:{env:ROOT}/a"\n')

    run_file = read(path, [], {"TOKEN": "secret", "ROOT": "/data"})

    assert run_file.data == {"hub": {"token": "secret"}, "dataset": [{"url": "file:/data/a"}]}
    assert run_file.placeholders[("hub", "token")] == "{env:TOKEN}"


def test_placeholder_without_a_variable_is_a_problem(run_toml: RunToml) -> None:
    path = run_toml('[hub]\ntoken = "{env:TOKEN}"\n')

    assert problems(read(path, [], {})) == [
        "run.toml:2: [hub] token = '{env:TOKEN}': the environment variable 'TOKEN' is not set."
    ]


def test_json_says_the_same_and_null_is_unset(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text('{"steps": 3, "epochs": null, "optimizer": {"lr": 1}}')

    run_file = read(path)

    assert run_file.data == {"steps": 3, "optimizer": {"lr": 1}}
    assert run_file.setting(("optimizer", "lr"), 1) == "run.json: [optimizer] lr = 1"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("run.toml", "a = 1\nb = \n", "run.toml:2: not TOML: invalid value."),
        ("run.toml", "a = 1\na = 2\n", "run.toml:2: the same key is given twice."),
        ("run.toml", "[a]\n[a]\n", "run.toml:2: the same key is given twice."),
        ("run.json", '{"a": 1,\n b}', "run.json:2: not JSON: Expecting property name enclosed in double quotes."),
        ("run.json", '{"a": 1, "a": 1}', "run.json: 'a' is given twice."),
        ("run.toml", ".".join("a" * 5000) + " = 1", "run.toml: it is nested too deeply."),
        ("run.json", "[]", "run.json: a run file is an object of settings, not list."),
    ],
)
def test_file_that_cannot_be_read_says_where(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)

    with pytest.raises(RunFileUnreadable) as raised:
        read(path)

    assert raised.value.what == message
    assert raised.value.exit_code == 2


def test_file_of_another_suffix_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("a: 1")

    with pytest.raises(RunFileUnreadable, match=r"must end in \.toml or \.json"):
        read(tmp_path / "run.yaml")


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(b"\xef\xbb\xbfsteps = 3\r\nbatch = 2\r\n")

    run_file = read(path)

    assert run_file.data == {"steps": 3, "batch": 2}
    assert run_file.origins["batch",].line == 2


def test_other_encodings_are_named_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(b'steps = 3\nname = "caf\xe9"\n')

    with pytest.raises(RunFileUnreadable, match=r"run.toml:2: not UTF-8: the byte 0xe9"):
        read(path)


def test_a_folder_in_place_of_a_run_file_is_named_as_one(tmp_path: Path) -> None:
    (tmp_path / "base.toml").touch()

    with pytest.raises(RunFileUnreadable, match=r"is a folder, not a run file.\n  Name a file in it: .*base.toml"):
        read(tmp_path)
