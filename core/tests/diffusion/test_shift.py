import math

import pytest
import torch
from pydantic import ValidationError

from st.diffusion.shift import ShiftOptions, exponential_shift, shift, shift_rule, unshifted

LATENTS = torch.zeros(1, 16, 64, 64)


@pytest.mark.parametrize(("t", "expected"), [(0.0, 0.0), (0.1, 0.25), (0.5, 0.75), (0.9, 0.964286), (1.0, 1.0)])
def test_a_static_shift_of_three_moves_times_towards_noise(t: float, expected: float) -> None:
    assert shift(t, 3.0) == pytest.approx(expected, abs=1e-6)
    assert shift(torch.tensor(t), 3.0).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("tokens", "mu", "k", "middle"),
    [(256, 0.5, 1.648721, 0.622459), (1024, 0.63, 1.877611, 0.652489), (4096, 1.15, 3.158193, 0.759511)],
)
def test_the_exponential_shift_grows_with_tokens(tokens: int, mu: float, k: float, middle: float) -> None:
    found = exponential_shift(tokens)

    assert math.log(found) == pytest.approx(mu, abs=1e-9)
    assert found == pytest.approx(k, abs=1e-6)
    assert shift(0.5, found) == pytest.approx(middle, abs=1e-6)


def test_the_line_of_an_exponential_shift_is_the_familys() -> None:
    assert exponential_shift(1024, (1024, 0.95), (4096, 2.05)) == pytest.approx(math.exp(0.95))
    assert exponential_shift(4096, (1024, 0.95), (4096, 2.05)) == pytest.approx(math.exp(2.05))


def test_one_changes_nothing() -> None:
    t = torch.linspace(0, 1, 101)

    assert torch.equal(shift(t, 1.0), t)


def test_a_family_is_asked_for_its_tokens_and_its_shift() -> None:
    rule = shift_rule(ShiftOptions(), lambda latents: latents.shape[-1] * 2, lambda tokens: tokens / 100)

    assert rule(LATENTS) == 1.28


def test_a_static_shift_asks_no_family() -> None:
    def forbidden(argument: object) -> int:
        raise AssertionError

    assert shift_rule(ShiftOptions(kind="static", value=3.0), forbidden, forbidden)(LATENTS) == 3.0
    assert shift_rule(ShiftOptions(kind="none"), forbidden, forbidden)(LATENTS) == 1.0
    assert unshifted(LATENTS) == 1.0


@pytest.mark.parametrize("settings", [{"kind": "static"}, {"value": 3.0}, {"kind": "none", "value": 3.0}])
def test_a_value_without_effect_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="value"):
        ShiftOptions.model_validate(settings)
