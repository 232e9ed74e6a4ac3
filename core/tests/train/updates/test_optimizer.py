import time

import pytest
import torch

from st.errors import StError
from st.train.updates.adamw_bf16 import AdamWBf16, _chunks, round_stochastically
from st.train.updates.optimizers import (
    AdafactorOptions,
    AdamWOptions,
    SgdOptions,
    build_adafactor,
    build_adamw,
    build_adamw_bf16,
    build_sgd,
)


def test_stochastic_rounding_keeps_the_mean():
    value = 1.0 + 1 / 1024
    values = torch.full((200_000,), value)

    rounded = round_stochastically(values, torch.Generator().manual_seed(0)).float()

    assert set(rounded.unique().tolist()) == {1.0, 1.0078125}
    # The standard error of 200,000 draws is 6e-6.
    assert rounded.mean().item() == pytest.approx(value, abs=3e-5)


def test_stochastic_rounding_leaves_bfloat16_values_alone():
    values = torch.randn(1000).to(torch.bfloat16)

    assert torch.equal(round_stochastically(values.float(), torch.Generator().manual_seed(0)), values)


def test_bf16_steps_follow_float32_adamw_in_the_mean():
    torch.manual_seed(0)
    start = torch.ones(50_000)
    exact = torch.nn.Parameter(start.clone())
    rounded = torch.nn.Parameter(start.to(torch.bfloat16))
    reference = torch.optim.AdamW([exact], lr=1e-4, weight_decay=0.1)
    optimizer = AdamWBf16([rounded], lr=1e-4, weight_decay=0.1)

    for _ in range(20):
        exact.grad = torch.full_like(exact, 0.5)
        rounded.grad = torch.full_like(rounded, 0.5)
        reference.step()
        optimizer.step()

    assert rounded.float().mean().item() == pytest.approx(exact.mean().item(), abs=1e-4)
    assert rounded.float().mean().item() < 0.9985, "nearest rounding would not move at all"


def test_bf16_steps_repeat_after_their_state_is_restored():
    def trained(steps, restore_at=None):
        parameter = torch.nn.Parameter(torch.linspace(-1, 1, 64).to(torch.bfloat16))
        optimizer = AdamWBf16([parameter], lr=1e-2)
        for step in range(steps):
            if step == restore_at:
                state = optimizer.state_dict()
                optimizer = AdamWBf16([parameter], lr=1e-2)
                optimizer.load_state_dict(state)
            parameter.grad = torch.sin(parameter.detach().float() * step).to(torch.bfloat16)
            optimizer.step()
        return parameter.detach()

    assert torch.equal(trained(6), trained(6, restore_at=3))


def test_float32_weights_beside_bf16_ones_are_stepped_exactly():
    torch.manual_seed(0)
    values = torch.randn(3, 5)
    mixed = [torch.nn.Parameter(values.clone()), torch.nn.Parameter(values.to(torch.bfloat16))]
    exact = torch.nn.Parameter(values.clone())
    optimizer, reference = AdamWBf16(mixed, lr=1e-2), torch.optim.AdamW([exact], lr=1e-2)

    for step in range(5):
        for parameter in (*mixed, exact):
            parameter.grad = torch.sin(values * step).to(parameter.dtype)
        optimizer.step()
        reference.step()

    # Sums in another order.
    assert torch.allclose(mixed[0], exact, atol=1e-6)
    assert torch.allclose(mixed[1].float(), exact, atol=2e-2)


@pytest.mark.parametrize(
    ("build", "options"),
    [(build_adamw, AdamWOptions()), (build_sgd, SgdOptions()), (build_adafactor, AdafactorOptions())],
)
def test_optimizers_that_round_to_the_nearest_refuse_bf16_weights(build, options):
    with pytest.raises(StError, match="loses updates smaller than 1/256") as error:
        build([{"params": [torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))]}], options)

    assert "adamw_bf16" in error.value.fix


def test_fp16_weights_are_refused_by_every_optimizer():
    with pytest.raises(StError, match="kept in fp16"):
        build_adamw_bf16([{"params": [torch.nn.Parameter(torch.zeros(2, dtype=torch.float16))]}], AdamWOptions())


def test_cutting_a_step_into_chunks_takes_time_in_proportion_to_the_tensors():
    parameters = [torch.nn.Parameter(torch.zeros(1, dtype=torch.bfloat16)) for _ in range(20_000)]
    started = time.process_time()

    chunks = list(_chunks(parameters))

    # 0.02 s; counting a chunk anew for each tensor takes more than ten.
    assert time.process_time() - started < 2
    assert sum(map(len, chunks)) == len(parameters)


@pytest.mark.parametrize(
    ("build", "options"),
    [(build_adamw, AdamWOptions()), (build_sgd, SgdOptions()), (build_adafactor, AdafactorOptions())],
)
def test_every_optimizer_lowers_a_square(build, options):
    parameter = torch.nn.Parameter(torch.full((4, 4), 3.0))
    optimizer = build([{"params": [parameter]}], options)

    for _ in range(5):
        parameter.grad = parameter.detach().clone()
        optimizer.step()

    assert parameter.abs().max() < 3.0
