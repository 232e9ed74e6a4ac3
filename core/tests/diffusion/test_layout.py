"""Several streams travel as one tensor, are scored by themselves, and a sample trains those that it has."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from st.diffusion.densities import Uniform, UniformOptions
from st.diffusion.distances import L2, L2Options
from st.diffusion.layout import Layout
from st.diffusion.noise import NoiseOptions
from st.diffusion.objective import Batch, Losses, Objective, StreamOptions
from st.diffusion.path import straight
from st.diffusion.target import velocity
from st.diffusion.weightings import Uniform as Even
from st.diffusion.weightings import UniformOptions as EvenOptions
from st.randomness import Draws

FLOW = Objective(straight, velocity, Uniform(UniformOptions()), Even(EvenOptions()), L2(L2Options()))
SEED = torch.Generator().manual_seed(0)
CLIP, SOUND = torch.randn(2, 3, 2, 6, 5, generator=SEED), torch.randn(2, 4, 7, generator=SEED)
DUO = Batch(("a", "b"), (0, 1), "clips", CLIP, {}, streams={"clip": CLIP, "sound": SOUND})
ALONE = Batch(("a", "b"), (0, 1), "clips", CLIP, {})
DRAWS = Draws(1, (0, 1), torch.device("cpu"))


def scored(batch: Batch, objective: Objective = FLOW) -> Losses:
    noised = objective.noise(batch, DRAWS)
    return objective.loss(0.1 * noised.noise, noised, batch)


def test_streams_are_what_they_were_when_taken_apart() -> None:
    layout = Layout.of(DUO.streams)

    parts = layout.split(layout.join(DUO.streams))

    assert torch.equal(parts["clip"], CLIP) and torch.equal(parts["sound"], SOUND)


@pytest.mark.parametrize(
    "wrong", [{"clip": CLIP}, {"clip": CLIP, "sound": SOUND[:, :, 1:]}, {"clip": CLIP, "noise": SOUND}]
)
def test_what_is_not_the_layout_is_refused(wrong: dict[str, Tensor]) -> None:
    layout = Layout.of(DUO.streams)

    with pytest.raises(ValueError, match="are joined where"):
        layout.join(wrong)
    with pytest.raises(ValueError, match="does not hold"):
        layout.split(CLIP)


def test_the_first_stream_is_noised_as_if_it_were_alone() -> None:
    objective = replace(FLOW, extra_noise=NoiseOptions(offset=0.1, offset_probability=1.0))
    together, alone = objective.noise(DUO, DRAWS), objective.noise(ALONE, DRAWS)
    layout = Layout.of(DUO.streams)

    assert torch.equal(layout.split(together.x)["clip"], alone.x)
    assert torch.equal(together.t, alone.t)


def test_losses_of_streams_add_up_by_their_weights() -> None:
    clip, sound = scored(ALONE).samples, scored(DUO).samples - scored(ALONE).samples

    weighted = scored(DUO, replace(FLOW, streams=StreamOptions(weight={"clip": 0.5, "sound": 2.0}))).samples

    torch.testing.assert_close(weighted, 0.5 * clip + 2 * sound)
    torch.testing.assert_close(scored(DUO).streams["clip"], clip.mean())
    torch.testing.assert_close(scored(DUO).streams["sound"], sound.mean())


def test_a_sample_without_a_stream_trains_the_other() -> None:
    found = scored(replace(DUO, lacking={"sound": torch.tensor([True, False])}))

    assert torch.equal(found.samples[0], scored(ALONE).samples[0])
    torch.testing.assert_close(found.samples[1], scored(DUO).samples[1])
    torch.testing.assert_close(found.streams["sound"], scored(DUO).samples[1] - scored(ALONE).samples[1])


def test_a_mask_is_of_the_first_stream() -> None:
    nothing = torch.zeros(2, 1, 6, 5)

    masked = scored(replace(DUO, mask=nothing)).samples

    torch.testing.assert_close(masked, scored(DUO).samples - scored(ALONE).samples)


def test_each_stream_may_have_times_of_its_own() -> None:
    layout = Layout.of(DUO.streams)

    def places(t: Tensor, batch: Batch, draws: Draws | None) -> Tensor:
        return layout.join_times({"clip": torch.zeros(2, 1, 2, 1, 1), "sound": t})

    placed = replace(FLOW, positions=places)
    noised = placed.noise(DUO, DRAWS)
    losses = placed.loss(0.1 * noised.noise, noised, DUO)

    assert torch.equal(layout.split(noised.x)["clip"], CLIP)
    assert losses.streams["clip"] == 0
    torch.testing.assert_close(losses.samples, scored(DUO).samples - scored(ALONE).samples)


@pytest.mark.parametrize("weight", [-1.0, float("inf"), float("nan")])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match=r"0 or more|a finite number"):
        StreamOptions(weight={"sound": weight})
