import pytest
import torch

from st.diffusion.path import Mix
from st.diffusion.target import Target, clean, dataward_velocity, epsilon, target_name, v, velocity

PICTURE, NOISE = torch.tensor([[3.0]]), torch.tensor([[5.0]])


@pytest.mark.parametrize(
    ("target", "expected"),
    [(velocity, 2.0), (dataward_velocity, -2.0), (epsilon, 5.0), (clean, 3.0), (v, 0.8 * 5 - 0.6 * 3)],
)
def test_a_target_is_what_its_paper_says(target: Target, expected: float) -> None:
    wanted = target(Mix(0.8, 0.6)).of(PICTURE, NOISE)

    assert wanted.item() == pytest.approx(expected)


def test_a_target_is_called_by_its_name() -> None:
    class Mine:
        def __call__(self, x: Mix, /) -> Mix:
            return x

    assert target_name(epsilon) == "epsilon"
    assert target_name(Mine()) == "Mine"
