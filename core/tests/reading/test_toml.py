"""Lines of TOML keys, and values as TOML writes them."""

from __future__ import annotations

import tomllib

import pytest

from st.reading.toml import statement_lines, value_text

TEXT = '''\
# a comment
plugins = [
    "a", # [not a table]
    "b",
]
steps = 3

[model]
checkpoint = """
[neither] = this
"""
a.b = 3
[[dataset]]
url = "x"
[dataset.shuffle]
count = 1
[[dataset]]
url = { a = 1, b = [1, 2] }
'''


def test_every_key_is_on_the_line_that_it_starts_on() -> None:
    lines = statement_lines(TEXT)

    assert lines["plugins",] == 2
    assert lines["plugins", 1] == 2
    assert lines["steps",] == 6
    assert lines["model",] == 8
    assert lines["model", "checkpoint"] == 9
    assert lines["model", "a", "b"] == 12
    assert lines["dataset", 0, "url"] == 14
    assert lines["dataset", 0, "shuffle", "count"] == 16
    assert lines["dataset", 1] == 17
    assert lines["dataset", 1, "url", "a"] == 18
    assert ("neither",) not in lines


def test_lines_do_not_depend_on_the_line_ending() -> None:
    assert statement_lines(TEXT.replace("\n", "\r\n")) == statement_lines(TEXT)


@pytest.mark.parametrize("value", [True, 1, 1e-4, 'a "quoted" ü\n\\', [1, 2.5], ["a"], {"a": [True]}, []])
def test_value_reads_back_as_it_was(value: object) -> None:
    assert tomllib.loads(f"v = {value_text(value)}") == {"v": value}
