import pytest
import torch

from st.train.updates.average import Average, AverageOptions, decay_at


@pytest.mark.parametrize(("update", "decay"), [(1, 0.0), (2, 0.181818), (11, 0.55), (101, 0.918182), (2000, 0.995)])
def test_decay_grows_to_its_cap(update, decay):
    assert decay_at(update, AverageOptions()) == pytest.approx(decay, abs=1e-6)


def test_decay_is_fixed_after_a_warmup():
    options = AverageOptions(warmup=5, decay=0.9)

    assert [decay_at(update, options) for update in (1, 5, 6, 7, 8)] == [0.0, 0.0, 0.0, 0.9, 0.9]


def test_average_follows_the_formula():
    parameter = torch.nn.Parameter(torch.zeros(3))
    average = Average([parameter], AverageOptions(decay=0.5))
    with torch.no_grad():
        parameter.fill_(1.0)
    average.update(1)
    with torch.no_grad():
        parameter.fill_(2.0)

    average.update(2)

    assert torch.allclose(average.shadow[0], torch.full((3,), 1.0 + (1 - 2 / 11) * 1.0))


def test_trained_weights_return_bit_for_bit_after_a_look_at_the_average():
    parameter = torch.nn.Parameter(torch.randn(5, dtype=torch.bfloat16))
    average = Average([parameter], AverageOptions())
    average.shadow[0].fill_(7.0)
    before = parameter.detach().clone()

    with average.in_place():
        assert torch.equal(parameter, torch.full_like(parameter, 7.0))

    assert torch.equal(parameter, before)


def test_updates_happen_only_every_nth_step():
    average = Average([torch.nn.Parameter(torch.zeros(1))], AverageOptions(every=3))

    for step in range(1, 8):
        average.update(step)

    assert average.updates == 2
