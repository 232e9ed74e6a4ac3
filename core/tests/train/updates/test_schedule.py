import math

import pytest

from st.train.updates.schedule import SMALLEST, rates, without_effect
from st.train.updates.schedules import (
    ConstantOptions,
    CosineOptions,
    LinearOptions,
    PolynomialOptions,
    SineOptions,
    constant,
    cosine,
    linear,
    polynomial,
    sine,
)


def test_constant_rises_linearly_over_the_warmup_and_stays():
    rate = constant(ConstantOptions(warmup=4), total=10)

    assert [rate(step, 1.0) for step in (0, 1, 2, 3, 4, 9)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


def test_linear_falls_to_the_end_at_the_last_step():
    rate = linear(LinearOptions(warmup=2, end=0.1), total=12)

    assert rate(2, 1.0) == 1.0
    assert rate(7, 1.0) == pytest.approx(0.55)
    assert rate(12, 1.0) == pytest.approx(0.1)


def test_cosine_is_halfway_at_half_time():
    rate = cosine(CosineOptions(end=0.2), total=100)

    assert rate(0, 1.0) == 1.0
    assert rate(50, 1.0) == pytest.approx(0.6)
    assert rate(100, 1.0) == pytest.approx(0.2)


def test_cosine_restarts_at_the_top_of_each_cycle():
    rate = cosine(CosineOptions(cycles=2), total=100)

    assert rate(49, 1.0) < 0.01
    assert rate(50, 1.0) == 1.0
    assert rate(75, 1.0) == pytest.approx(0.5)
    assert rate(100, 1.0) == pytest.approx(0.0)


def test_polynomial_follows_its_formula():
    rate = polynomial(PolynomialOptions(end=0.1, power=2.0), total=10)

    assert rate(5, 1.0) == pytest.approx(0.9 * 0.25 + 0.1)


def test_sine_swings_between_top_and_end():
    rate = sine(SineOptions(end=0.0, period=100), total=400)

    assert rate(0, 1.0) == pytest.approx(0.5)
    assert rate(50, 1.0) == pytest.approx(1.0)
    assert rate(150, 1.0) == pytest.approx(0.0)
    assert rate(25, 1.0) == pytest.approx((1 + math.sin(math.pi / 4)) / 2)


def test_no_rate_falls_below_the_smallest():
    assert min(rates(linear(LinearOptions(), 10), 20, 1e-4)) == SMALLEST


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (ConstantOptions(warmup=100), "schedule.warmup = 100 is not over within the 50 steps"),
        (CosineOptions(warmup=50), "reaches optimizer.lr or schedule.end"),
        (SineOptions(period=40), "schedule.end is never reached"),
    ],
)
def test_what_a_run_is_too_short_for_is_said(options, said):
    (sentence,) = without_effect(options, 50)

    assert said in sentence
    assert not list(without_effect(options, 200))
