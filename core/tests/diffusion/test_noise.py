import pytest
import torch
from pydantic import ValidationError

from st.diffusion.noise import NoiseOptions, draw_noise, perturb
from st.diffusion.path import DiscretePath, straight
from st.randomness import Draws

CPU = torch.device("cpu")
DRAWS = Draws(5, tuple(range(400)), CPU)
LIKE = torch.zeros(400, 3, 4, 4)
NOISE = DRAWS.normal("noise", LIKE)


def test_plain_noise_is_the_draw_named_noise() -> None:
    assert torch.equal(draw_noise(NoiseOptions(), LIKE, DRAWS), NOISE)


def test_offset_moves_whole_channels_of_some_samples() -> None:
    difference = draw_noise(NoiseOptions(offset=0.1, offset_probability=0.25), LIKE, DRAWS) - NOISE

    moved = difference.flatten(1).abs().amax(1) > 0
    assert moved.float().mean().item() == pytest.approx(0.25, abs=0.05)
    torch.testing.assert_close(difference, difference[:, :, :1, :1].expand_as(difference), rtol=0, atol=1e-6)
    assert difference[moved][:, :, 0, 0].std().item() == pytest.approx(0.1, rel=0.1)


def test_offset_moves_all_frames_of_a_clip_together() -> None:
    like = torch.zeros(2, 3, 5, 4, 4)
    draws = Draws(5, (0, 1), CPU)

    difference = draw_noise(NoiseOptions(offset=0.1, offset_probability=1.0), like, draws) - draws.normal("noise", like)

    torch.testing.assert_close(difference, difference[:, :, :1, :1, :1].expand_as(difference), rtol=0, atol=1e-6)
    assert (difference[:, :, 0, 0, 0].abs() > 0).all()


def test_perturbation_adds_independent_noise() -> None:
    added = perturb(NoiseOptions(perturbation=0.5), NOISE, DRAWS, 1) - NOISE

    assert added.std().item() == pytest.approx(0.5, rel=0.02)
    assert abs(torch.corrcoef(torch.stack([added.flatten(), NOISE.flatten()]))[0, 1].item()) < 0.02


def test_perturbation_fades_by_optimizer_step() -> None:
    options = NoiseOptions(perturbation=0.5, perturbation_steps=4)

    added = perturb(options, NOISE, DRAWS, samples_per_step=50) - NOISE

    by_step = added.reshape(8, -1).std(1)
    torch.testing.assert_close(by_step, 0.5 * torch.tensor([1, 0.75, 0.5, 0.25, 0, 0, 0, 0]), rtol=0.05, atol=0)


def test_nothing_is_drawn_once_the_perturbation_has_faded() -> None:
    options = NoiseOptions(perturbation=0.5, perturbation_steps=4)

    assert perturb(options, LIKE, Draws(5, tuple(range(400, 800)), CPU), samples_per_step=100) is LIKE


@pytest.mark.parametrize("options", [NoiseOptions(offset=0.1), NoiseOptions(perturbation=0.1, perturbation_steps=9)])
def test_noise_does_not_depend_on_batch_mates(options: NoiseOptions) -> None:
    def noise_of(*indices: int) -> torch.Tensor:
        draws = Draws(5, indices, CPU)
        return perturb(options, draw_noise(options, torch.zeros(len(indices), 3, 4, 4), draws), draws, 2)

    assert torch.equal(noise_of(3, 8, 1, 12), torch.cat([noise_of(3, 8), noise_of(1), noise_of(12)]))


def test_offset_is_refused_on_a_straight_path() -> None:
    options = NoiseOptions(offset=0.1)

    problem = options.problem(straight)

    assert problem is not None
    assert problem.where == "noise.offset"
    assert options.problem(DiscretePath((0.9, 0.1))) is None
    assert NoiseOptions(perturbation=0.1).problem(straight) is None


@pytest.mark.parametrize("settings", [{"offset_probability": 0.5}, {"perturbation_steps": 100}])
def test_a_setting_without_effect_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="no effect"):
        NoiseOptions.model_validate(settings)
