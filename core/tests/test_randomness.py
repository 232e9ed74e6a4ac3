import subprocess
import sys
from itertools import combinations

import pytest
import torch

from st.randomness import Draws, keyed

CPU = torch.device("cpu")
SHAPE = (4, 6, 5)


def draws(*indices: int, seed: int = 42) -> Draws:
    return Draws(seed, indices, CPU)


def test_a_key_is_the_same_for_ever() -> None:
    assert keyed(42, 0, "noise") == 6383961098077851056
    assert keyed(42, 1, "noise") == 7930590639753599527
    assert keyed(-1, 2**63, "crop/ä") == 6889284296572599194


def test_a_key_depends_on_every_argument() -> None:
    keys = [keyed(seed, index, name) for seed in (1, 11) for index in (1, 11) for name in ("a", "b", "1:a")]

    assert all(one != other for one, other in combinations(keys, 2))


@pytest.mark.parametrize("shape", [(1,), SHAPE, (16, 3, 8, 8)])
def test_a_row_of_noise_is_byte_equal_in_any_batch(shape: tuple[int, ...]) -> None:
    together = draws(7, 3, 9, 1).normal("noise", torch.empty(4, *shape))

    halves = [draws(7, 3).normal("noise", torch.empty(2, *shape)), draws(9, 1).normal("noise", torch.empty(2, *shape))]
    alone = [draws(index).normal("noise", torch.empty(1, *shape)) for index in (7, 3, 9, 1)]

    assert torch.equal(together, torch.cat(halves))
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("columns", [1, 3])
def test_a_row_of_numbers_is_equal_in_any_batch(columns: int) -> None:
    together = draws(7, 3, 9).uniform("time", columns)

    alone = torch.cat([draws(index).uniform("time", columns) for index in (7, 3, 9)])

    assert torch.equal(together, alone)
    assert together.shape == ((3,) if columns == 1 else (3, columns))


def test_names_seeds_and_samples_give_different_noise() -> None:
    like = torch.empty(2, *SHAPE)
    noises = [
        *draws(0, 1).normal("noise", like),
        *draws(0, 1).normal("offset", like),
        *draws(0, 1, seed=43).normal("noise", like),
    ]

    assert not any(torch.equal(one, other) for one, other in combinations(noises, 2))


def test_asking_twice_gives_the_same_answer() -> None:
    same = draws(5)

    assert torch.equal(same.normal("noise", torch.empty(1, *SHAPE)), same.normal("noise", torch.empty(1, *SHAPE)))
    assert same.numbers("time") == same.numbers("time")


def test_no_draw_touches_the_global_generator() -> None:
    before = torch.get_rng_state()

    draws(0, 1).normal("noise", torch.empty(2, *SHAPE))
    draws(0, 1).stream("tokens")

    assert torch.equal(torch.get_rng_state(), before)


def test_noise_is_drawn_in_float32_whatever_the_type() -> None:
    exact = draws(0).normal("noise", torch.empty(1, *SHAPE))

    rounded = draws(0).normal("noise", torch.empty(1, *SHAPE, dtype=torch.bfloat16))

    assert torch.equal(rounded, exact.bfloat16())


def test_noise_is_standard_normal_within_and_across_samples() -> None:
    noise = draws(*range(500)).normal("noise", torch.empty(500, 100))

    for values in (noise.flatten(), noise[:, 0], noise[:, 99]):
        quantiles = torch.special.ndtr(values.sort().values)
        even = (torch.arange(len(values)) + 0.5) / len(values)
        assert (quantiles - even).abs().max() < 2 / len(values) ** 0.5


def test_numbers_are_uniform_in_an_open_interval() -> None:
    numbers = draws(*range(8000)).uniform("time").sort().values

    even = (torch.arange(8000) + 0.5) / 8000
    assert (numbers - even).abs().max() < 2 / 8000**0.5
    assert numbers[0] > 0 and numbers[-1] < 1


def test_numbers_are_exact_in_float32() -> None:
    some = draws(*range(1000))

    assert some.uniform("time").tolist() == list(some.numbers("time"))


def test_integers_are_below_their_bound_and_take_every_value() -> None:
    assert set(draws(*range(200)).integers("caption", 5)) == {0, 1, 2, 3, 4}


def test_a_stream_belongs_to_the_first_sample() -> None:
    def tokens(*indices: int) -> list[int]:
        return torch.randperm(20, generator=draws(*indices).stream("tokens")).tolist()

    assert tokens(3, 4) == tokens(3, 9)
    assert tokens(3) != tokens(4)


def test_rows_without_a_sample_are_refused() -> None:
    with pytest.raises(AssertionError, match="3 rows are drawn for 2 samples"):
        draws(0, 1).normal("noise", torch.empty(3, *SHAPE))


def test_keys_need_no_torch() -> None:
    code = "from st.randomness import Draws, keyed; keyed(1, 2, 'a'); Draws(1, (2,), None).numbers('a')"

    subprocess.run([sys.executable, "-c", f"{code}; import sys; assert 'torch' not in sys.modules"], check=True)
