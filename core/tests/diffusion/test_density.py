import math
from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError

from st.diffusion.densities import (
    Beta,
    BetaOptions,
    Cubic,
    CubicOptions,
    FixedList,
    ListOptions,
    LogitNormal,
    LogitNormalOptions,
    Segmented,
    SegmentedOptions,
    Uniform,
    UniformOptions,
    monotone_cubic,
    register,
)
from st.diffusion.density import Density, default_density
from st.diffusion.path import DiscretePath, linear_betas, straight
from st.randomness import Draws
from st.registrar import Registrar

CPU = torch.device("cpu")
COUNT = 8000
MANY = Draws(7, tuple(range(COUNT)), CPU)
DENSITIES: dict[str, Density] = {
    "uniform": Uniform(UniformOptions()),
    "logit_normal": LogitNormal(LogitNormalOptions()),
    "beta": Beta(BetaOptions()),
    "cubic": Cubic(CubicOptions(knots=(0, 1, 3, 1))),
    "list": FixedList(ListOptions(times=(1.0, 0.5, 0.25))),
    "round_robin": FixedList(ListOptions(times=(1.0, 0.5, 0.25), order="round-robin")),
    "segmented": Segmented(SegmentedOptions()),
}


def distance_to(times: torch.Tensor, cumulative: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """Kolmogorov and Smirnov's: the largest gap between the drawn and the wanted cumulative distribution."""
    ordered = times.sort().values
    return float((cumulative(ordered) - (torch.arange(len(times)) + 0.5) / len(times)).abs().max())


# A correct density exceeds this gap once in 1500 seeds; the draws are keyed, so a test always sees the same ones.
CLOSE = 2.0 / math.sqrt(COUNT)


def test_uniform_times_are_uniform() -> None:
    assert distance_to(DENSITIES["uniform"](MANY), lambda t: t) < CLOSE


@pytest.mark.parametrize(("scale", "mean"), [(1.0, 0.0), (1.5, 0.0), (1.0, -0.4), (2.0, 1.0)])
def test_logit_normal_times_follow_scale_and_mean(scale: float, mean: float) -> None:
    density = LogitNormal(LogitNormalOptions(scale=scale, mean=mean))

    times = density(MANY)

    assert distance_to(times, lambda t: torch.special.ndtr(t.logit() / scale - mean)) < CLOSE


@pytest.mark.parametrize(("alpha", "beta"), [(2.0, 2.0), (0.5, 1.5), (5.0, 1.0)])
def test_beta_times_follow_their_distribution(alpha: float, beta: float) -> None:
    stats = pytest.importorskip("scipy.stats")

    times = Beta(BetaOptions(alpha=alpha, beta=beta))(MANY)

    assert distance_to(times, lambda t: torch.from_numpy(stats.beta.cdf(t.numpy(), alpha, beta))) < CLOSE


def test_cubic_times_follow_the_curve_through_the_knots() -> None:
    interpolate = pytest.importorskip("scipy.interpolate")
    knots = (0.0, 1.0, 3.0, 2.5, 0.0, 0.0)
    curve = interpolate.PchipInterpolator(torch.linspace(0, 1, 6, dtype=torch.float64).numpy(), knots)
    integral = curve.antiderivative()

    times = Cubic(CubicOptions(knots=knots))(MANY)

    assert distance_to(times, lambda t: torch.from_numpy(integral(t.numpy()) / integral(1.0))) < CLOSE


@pytest.mark.parametrize("knots", [(1, 2), (0, 1, 0), (2, 1, 1, 3), (1, 5, 5.1, 0, 2), (3, 0, 4, 4.5, 0.1, 9)])
def test_the_cubic_is_pchip(knots: tuple[float, ...]) -> None:
    interpolate = pytest.importorskip("scipy.interpolate")
    places = torch.linspace(0, 1, 101, dtype=torch.float64)
    theirs = interpolate.PchipInterpolator(torch.linspace(0, 1, len(knots), dtype=torch.float64).numpy(), knots)

    ours = torch.tensor([monotone_cubic(knots)(float(place)) for place in places], dtype=torch.float64)

    torch.testing.assert_close(ours, torch.from_numpy(theirs(places.numpy())), rtol=0, atol=1e-12)


@pytest.mark.parametrize("number", [0.0, 1e-7, 0.25, 0.5, 0.999, 1 - 2**-24])
def test_the_cubic_quantile_is_exact_for_a_flat_curve(number: float) -> None:
    assert Cubic(CubicOptions(knots=(2, 2, 2))).quantile(number) == pytest.approx(number, abs=1e-9)


def test_no_time_is_drawn_where_the_curve_is_zero() -> None:
    times = Cubic(CubicOptions(knots=(0, 0, 0, 1, 0, 0, 0)))(MANY)

    assert times.min() > 1 / 3
    assert times.max() < 2 / 3


@pytest.mark.parametrize("knots", [(1.0,), (0.0, 0.0), (1.0, -0.5)])
def test_knots_without_a_density_are_refused(knots: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError):
        CubicOptions(knots=knots)


def test_a_list_draws_each_time_as_often_as_it_is_listed() -> None:
    times = FixedList(ListOptions(times=(1.0, 1.0, 0.5, 0.25)))(MANY)

    found = {float(time): int((times == time).sum()) / COUNT for time in times.unique()}
    assert found == pytest.approx({1.0: 0.5, 0.5: 0.25, 0.25: 0.25}, abs=0.02)


def test_a_list_takes_turns_by_draw_index() -> None:
    draws = Draws(0, (4, 5, 6, 0), CPU)

    assert DENSITIES["round_robin"](draws).tolist() == [0.5, 0.25, 1.0, 1.0]


def test_only_lists_are_not_shifted() -> None:
    assert [name for name, density in DENSITIES.items() if not density.shifted] == ["list", "round_robin"]


def test_times_in_a_list_are_not_indices() -> None:
    with pytest.raises(ValidationError, match="less than or equal to 1"):
        ListOptions(times=(999.0, 500.0))


def test_segments_cover_the_range_in_every_step() -> None:
    density = Segmented(SegmentedOptions(segments=8))

    by_step = density(MANY).reshape(-1, 8)

    assert torch.equal((by_step * 8).floor(), torch.arange(7, -1, -1.0).expand(COUNT // 8, 8))


def test_segmented_times_are_uniform_in_all() -> None:
    assert distance_to(DENSITIES["segmented"](MANY), lambda t: t) < CLOSE / 2


def test_one_segment_draws_each_time_on_its_own() -> None:
    density = Segmented(SegmentedOptions(segments=1))

    assert torch.equal(density(MANY), DENSITIES["uniform"](MANY))


@pytest.mark.parametrize(("begin", "end"), [(0.75, 1.0), (0.0, 0.25), (0.2, 0.6)])
@pytest.mark.parametrize("multiplier", [0.0, 0.5, 3.0])
def test_a_favoured_range_is_drawn_by_its_weight(begin: float, end: float, multiplier: float) -> None:
    density = Segmented(SegmentedOptions(segments=4, begin=begin, end=end, multiplier=multiplier))

    times = density(MANY)

    inside = float(((times >= begin) & (times < end)).float().mean())
    favoured = multiplier * (end - begin)
    assert inside == pytest.approx(favoured / (favoured + 1 - end + begin), abs=0.01)


def test_segmented_draws_every_index_of_a_table_equally_often() -> None:
    path = DiscretePath.of_betas(linear_betas(0.001, 0.1, steps=16))

    counts = path.index(path.snap(Segmented(SegmentedOptions(segments=16))(MANY))).bincount()

    assert counts.tolist() == [COUNT // 16] * 16


@pytest.mark.parametrize(
    "settings", [{"begin": 0.5}, {"multiplier": 2.0}, {"begin": 0.6, "end": 0.5, "multiplier": 2.0}]
)
def test_a_favour_without_effect_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        SegmentedOptions.model_validate(settings)


@pytest.mark.parametrize("density", DENSITIES.values(), ids=DENSITIES)
def test_a_time_does_not_depend_on_batch_mates(density: Density) -> None:
    together = density(Draws(3, (11, 4, 90), CPU))

    alone = torch.cat([density(Draws(3, (index,), CPU)) for index in (11, 4, 90)])

    assert torch.equal(together, alone)


@pytest.mark.parametrize("density", DENSITIES.values(), ids=DENSITIES)
def test_times_are_float32_and_in_range(density: Density) -> None:
    times = density(MANY)

    assert times.dtype == torch.float32
    assert times.shape == (COUNT,)
    assert times.min() >= 0 and times.max() <= 1


def test_the_default_fits_the_path() -> None:
    assert default_density(straight) == "logit_normal"
    assert default_density(DiscretePath((0.9, 0.5))) == "segmented"


def test_every_density_is_registered() -> None:
    registrar = Registrar()

    register(registrar)

    assert registrar.names("density") == ["beta", "cubic", "list", "logit_normal", "segmented", "uniform"]
