"""Slow-downs are noticed, told once, and blamed on the stage that grew."""

import pytest

from st.report.slowdown import SlowDown

USUAL = {"data": 0.1, "compute": 1.0, "update": 0.1, "rest": 0.05}


def reading(**grown: float) -> dict[str, float]:
    parts = {**USUAL, **grown}
    stages = {f"seconds/{name}": seconds for name, seconds in parts.items() if name != "rest"}
    return {"loss": 1.0, "seconds/step": sum(parts.values()), **stages}


@pytest.mark.parametrize(
    ("stage", "cause"), [("data", "waiting for data"), ("compute", "forward"), ("rest", "between")]
)
def test_a_slow_down_is_told_once_with_the_stage_that_grew(stage: str, cause: str) -> None:
    watch = SlowDown()
    for _ in range(40):
        assert watch.see(reading()) is None

    told = [text for _ in range(20) if (text := watch.see(reading(**{stage: 3.0})))]

    assert len(told) == 1
    assert cause in told[0]


def test_a_slow_start_and_single_slow_steps_are_no_slow_down() -> None:
    watch = SlowDown()
    times = [60.0, *[1.0] * 60]
    times[30] = times[45] = 50.0

    assert [watch.see(reading(compute=seconds)) for seconds in times] == [None] * 61


def test_a_second_slow_down_is_told_again() -> None:
    watch = SlowDown()
    phases = [1.0] * 40 + [9.0] * 20 + [1.0] * 20 + [9.0] * 20

    assert sum(watch.see(reading(compute=seconds)) is not None for seconds in phases) == 2
