"""Lengths of time in words."""

import pytest

from st.report.log.duration import duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.00632, "6.32 ms"),
        (4.21, "4.21 s"),
        (42.4, "42 s"),
        (59.7, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7620, "2 h 07 min"),
        (273_600, "3 d 04 h"),
    ],
)
def test_a_length_of_time_is_said_with_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text
