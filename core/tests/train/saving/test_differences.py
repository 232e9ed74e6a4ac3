"""Two resolved configurations are compared setting by setting."""

from __future__ import annotations

from typing import Any

from st.train.saving.differences import Difference, differences


def test_differences_name_old_and_new() -> None:
    old: dict[str, Any] = {"steps": 1, "a": {"x": [1, 2], "y": 1}, "dataset": [{"url": "a"}], "gone": 1}
    new: dict[str, Any] = {"steps": 1, "a": {"x": [1, 3], "y": 1}, "dataset": [{"url": "a"}, {"url": "b"}]}

    assert differences(old, new) == [
        Difference("a.x", [1, 2], [1, 3]),
        Difference("dataset.1.url", None, "b"),
        Difference("gone", 1, None),
    ]
    assert differences(old, old) == []
