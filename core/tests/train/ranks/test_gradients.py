import torch

from st.train.ranks.gradients import ClipOptions, clip


def _with_gradient(values):
    parameter = torch.nn.Parameter(torch.zeros(len(values)))
    parameter.grad = torch.tensor(values)
    return parameter


def test_norm_before_clipping_is_reported():
    parameter = _with_gradient([3.0, 4.0])

    norms = clip([parameter], ClipOptions(norm=1.0))

    assert norms.total.item() == 5.0
    assert torch.allclose(parameter.grad, torch.tensor([0.6, 0.8]), atol=1e-5)


def test_small_gradients_are_left_alone():
    parameter = _with_gradient([0.3, 0.4])

    clip([parameter], ClipOptions(norm=1.0))

    assert torch.equal(parameter.grad, torch.tensor([0.3, 0.4]))


def test_values_are_clamped_before_the_norm():
    parameter = _with_gradient([10.0, -0.1])

    clip([parameter], ClipOptions(norm=0.0, value=0.5))

    assert torch.equal(parameter.grad, torch.tensor([0.5, -0.1]))


def test_parameters_whose_gradients_are_not_finite_are_told_apart():
    fine, broken, unreached = _with_gradient([3.0]), _with_gradient([4.0, float("nan")]), _with_gradient([1.0])
    unreached.grad = None

    norms = clip([fine, unreached, broken], ClipOptions(norm=1.0))

    assert not norms.total.isfinite()
    assert [one is broken for one in norms.broken()] == [True]
