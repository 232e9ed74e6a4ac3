"""Each optimizer takes the steps that its paper describes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from st_optimizers import building as build
from st_optimizers import options as of
from st_optimizers.paged import PagedAdamW, PagedAdamW8bit, PagedLion8bit

SHAPES = ((3, 5), (6, 2), (4,))
STEPS = 3


def weights(dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]


def gradients(step: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Much alike in every step, so that a step size that is estimated from them grows."""
    same, other = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2 + step)
    return [
        (torch.randn(shape, generator=same, dtype=torch.float64).add(torch.randn(shape, generator=other).mul(0.3))).to(
            dtype
        )
        for shape in SHAPES
    ]


def trained(make: Callable[[list[dict[str, Any]]], Any], dtype: torch.dtype, steps: int = STEPS) -> list[Tensor]:
    """The weights after some steps of an optimizer that ``make`` builds over two groups."""
    parameters = [torch.nn.Parameter(one) for one in weights(dtype)]
    optimizer = make([{"params": parameters[:2], "name": "first"}, {"params": parameters[2:], "name": "second"}])
    for step in range(steps):
        for parameter, gradient in zip(parameters, gradients(step, dtype), strict=True):
            parameter.grad = gradient
        optimizer.step()
    return [parameter.detach() for parameter in parameters]


def assert_close(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=1e-6, atol=1e-6)


def plain_adamw(o: of.PagedAdamWOptions) -> list[Tensor]:
    """Loshchilov & Hutter 2017, algorithm 2."""
    found = []
    for place, w in enumerate(weights(torch.float64)):
        m = v = torch.zeros_like(w)
        for step in range(STEPS):
            g = gradients(step)[place]
            m = o.beta1 * m + (1 - o.beta1) * g
            v = o.beta2 * v + (1 - o.beta2) * g * g
            m_hat, v_hat = m / (1 - o.beta1 ** (step + 1)), v / (1 - o.beta2 ** (step + 1))
            w = w - o.lr * (m_hat / (v_hat.sqrt() + o.epsilon) + o.weight_decay * w)
        found.append(w)
    return found


def plain_lion(o: of.LionOptions) -> list[Tensor]:
    """Chen et al. 2023, algorithm 2."""
    found = []
    for place, w in enumerate(weights(torch.float64)):
        m = torch.zeros_like(w)
        for step in range(STEPS):
            g = gradients(step)[place]
            w = w - o.lr * ((o.beta1 * m + (1 - o.beta1) * g).sign() + o.weight_decay * w)
            m = o.beta2 * m + (1 - o.beta2) * g
        found.append(w)
    return found


def plain_stable_adamw(o: of.StableAdamWOptions) -> list[Tensor]:
    """Wortsman et al. 2023, algorithm 2."""
    found = []
    for place, w in enumerate(weights(torch.float64)):
        m = u = torch.zeros_like(w)
        for t in range(1, STEPS + 1):
            g = gradients(t - 1)[place]
            beta1 = o.beta1 * (1 - o.beta1 ** (t - 1)) / (1 - o.beta1**t)
            beta2 = o.beta2 * (1 - o.beta2 ** (t - 1)) / (1 - o.beta2**t)
            m, u = beta1 * m + (1 - beta1) * g, beta2 * u + (1 - beta2) * g * g
            rms = math.sqrt((g * g / u.clamp(min=o.epsilon**2)).mean().item())
            lr = o.lr / max(1.0, rms)
            w = w - lr * o.weight_decay * w - lr * m / (u.sqrt() + o.epsilon)
        found.append(w)
    return found


def plain_prodigy(o: of.ProdigyOptions) -> tuple[list[Tensor], float]:
    """Mishchenko & Defazio 2023, algorithm 4, with bias correction and without the rate in the denominator."""
    starts = weights(torch.float64)
    ws = [w.clone() for w in starts]
    ms, vs, ss = ([torch.zeros_like(w) for w in ws] for _ in range(3))
    d, r, beta3 = o.d0, 0.0, math.sqrt(o.beta2)
    for t in range(1, STEPS + 1):
        gs = gradients(t - 1)
        step = d * o.lr * math.sqrt(1 - o.beta2**t) / (1 - o.beta1**t)
        r = beta3 * r + d / o.d0 * step * sum(
            (g * (x0 - w)).sum().item() for g, x0, w in zip(gs, starts, ws, strict=True)
        )
        ms = [o.beta1 * m + (1 - o.beta1) * d * g for m, g in zip(ms, gs, strict=True)]
        vs = [o.beta2 * v + (1 - o.beta2) * d * d * g * g for v, g in zip(vs, gs, strict=True)]
        ss = [beta3 * s + d / o.d0 * d * g for s, g in zip(ss, gs, strict=True)]
        d = max(d, o.d_coef * r / sum(s.abs().sum().item() for s in ss))
        ws = [
            w - step * o.weight_decay * w - step * m / (v.sqrt() + d * o.epsilon)
            for w, m, v in zip(ws, ms, vs, strict=True)
        ]
    return ws, d


def plain_schedule_free(o: of.ScheduleFreeOptions) -> tuple[list[Tensor], list[Tensor]]:
    """Defazio et al. 2024, algorithm 1: the weights that gradients are computed at, and the average."""
    ys, xs = [], []
    for place, start in enumerate(weights(torch.float64)):
        x = z = y = start
        v, total = torch.zeros_like(start), 0.0
        for t in range(1, STEPS + 1):
            g = gradients(t - 1)[place]
            v = o.beta2 * v + (1 - o.beta2) * g * g
            z = z - o.lr * g / ((v / (1 - o.beta2**t)).sqrt() + o.epsilon) - o.lr * o.weight_decay * y
            total += o.lr**2
            x = (1 - o.lr**2 / total) * x + o.lr**2 / total * z
            y = (1 - o.beta1) * z + o.beta1 * x
        ys.append(y)
        xs.append(x)
    return ys, xs


def plain_soap(o: of.SoapOptions, steps: int) -> list[Tensor]:
    """Vyas et al. 2024, algorithm 3, over the sides of a matrix; a vector keeps its coordinates."""
    found = []
    for place, w in enumerate(weights(torch.float64)):
        first = gradients(0)[place]
        m = v = torch.zeros_like(w)
        covariances = [torch.zeros(n, n, dtype=w.dtype) for n in w.shape] if w.ndim == 2 else []

        def watch(g: Tensor, covariances: list[Tensor]) -> list[Tensor]:
            products = (g @ g.mT, g.mT @ g) if g.ndim == 2 else ()
            return [o.beta2 * c + (1 - o.beta2) * p for c, p in zip(covariances, products, strict=True)]

        def turned(x: Tensor, sides: list[Tensor], back: bool = False) -> Tensor:
            if not sides:
                return x
            left, right = (sides[0], sides[1].mT) if back else (sides[0].mT, sides[1])
            return left @ x @ right

        covariances = watch(first, covariances)
        sides = [torch.linalg.eigh(c + 1e-30 * torch.eye(len(c)))[1].flip(1) for c in covariances]
        for t in range(1, steps):
            g = gradients(t)[place]
            m = o.beta1 * m + (1 - o.beta1) * g
            v = o.beta2 * v + (1 - o.beta2) * turned(g, sides) ** 2
            lr = o.lr * math.sqrt(1 - o.beta2**t) / (1 - o.beta1**t)
            w = w - lr * turned(turned(m, sides) / (v.sqrt() + o.epsilon), sides, back=True)
            w = w - o.lr * o.weight_decay * w
            covariances = watch(g, covariances)
            if t % o.every == 0:
                for side, (c, q) in enumerate(zip(covariances, sides, strict=True)):
                    order = torch.argsort((q * (c @ q)).sum(0), descending=True)
                    v = v.index_select(side, order)
                    # The package computes this decomposition in float32.
                    sides[side] = torch.linalg.qr((c @ q)[:, order].float())[0].double()
        found.append(w)
    return found


@pytest.mark.parametrize("build_it", [build.build_adamw8bit, lambda g, o: PagedAdamW(g, **build._adamw(o))])
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU:UserWarning")
def test_adamw_with_a_state_of_32_bits_follows_its_paper(build_it: Any) -> None:
    options = of.AdamW8bitOptions(lr=0.01, weight_decay=0.1)

    # Tensors this small keep their state in 32 bits.
    assert_close(trained(lambda groups: build_it(groups, options), torch.float32), plain_adamw(options))


def test_lion_follows_its_paper() -> None:
    options = of.LionOptions(lr=0.01, weight_decay=0.5)

    assert_close(trained(lambda groups: build.build_lion(groups, options), torch.float64), plain_lion(options))


def test_lion8bit_with_a_state_of_32_bits_follows_its_paper() -> None:
    options = of.Lion8bitOptions(lr=0.01, weight_decay=0.5)

    assert_close(trained(lambda groups: build.build_lion8bit(groups, options), torch.float32), plain_lion(options))


def test_stable_adamw_follows_its_paper() -> None:
    options = of.StableAdamWOptions(lr=0.01, weight_decay=0.5, beta2=0.9)

    actual = trained(lambda groups: build.build_stable_adamw(groups, options), torch.float64)

    assert_close(actual, plain_stable_adamw(options))


def test_prodigy_follows_its_paper() -> None:
    options = of.ProdigyOptions(d0=0.01, d_coef=10, weight_decay=0.1)
    made = []

    def make(groups: list[dict[str, Any]]) -> Any:
        made.append(build.build_prodigy(groups, options))
        return made[0]

    actual = trained(make, torch.float64)
    expected, d = plain_prodigy(options)

    assert_close(actual, expected)
    assert d > options.d0, "the inputs do not make the step size grow"
    assert made[0].metrics() == {"d": pytest.approx(d, rel=1e-6)}


def test_schedule_free_follows_its_paper_in_both_modes() -> None:
    options = of.ScheduleFreeOptions(lr=0.01, weight_decay=0.1)
    made, evaluated = [], []

    def make(groups: list[dict[str, Any]]) -> Any:
        made.append(build.build_schedule_free(groups, options))
        return made[0]

    actual = trained(make, torch.float64)
    before = [one.clone() for one in actual]
    with made[0].evaluating():
        evaluated = [one.clone() for one in actual]

    ys, xs = plain_schedule_free(options)
    assert_close(before, ys)
    assert_close(evaluated, xs)
    assert all(torch.equal(one, other) for one, other in zip(actual, before, strict=True))


def test_a_look_at_the_average_changes_no_later_step() -> None:
    options = of.ScheduleFreeOptions(lr=0.01)

    class Looking:
        def __init__(self, groups: list[dict[str, Any]]) -> None:
            self.optimizer = build.build_schedule_free(groups, options)

        def step(self) -> None:
            self.optimizer.step()
            with self.optimizer.evaluating():  # type: ignore[attr-defined]
                pass

    straight = trained(lambda groups: build.build_schedule_free(groups, options), torch.float32)

    assert all(torch.equal(a, b) for a, b in zip(trained(Looking, torch.float32), straight, strict=True))


@pytest.mark.parametrize("adjusted", [False, True])
def test_muon_steps_on_matrices_are_those_of_torch(adjusted: bool) -> None:
    options = of.MuonOptions(weight_decay=0.1, adjusted_lr=adjusted)

    def torch_muon(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        kind = "match_rms_adamw" if adjusted else "original"
        matrices = [p for group in groups for p in group["params"] if p.ndim == 2]
        return torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1, momentum=0.95, adjust_lr_fn=kind)

    actual = trained(lambda groups: build.build_muon(groups, options), torch.float32)

    assert_close(actual[:2], trained(torch_muon, torch.float32)[:2])


def test_muon_leaves_vectors_to_adamw() -> None:
    options = of.MuonOptions(adamw_lr=0.01, adamw_weight_decay=0.1)
    adamw = of.PagedAdamWOptions(lr=0.01, beta2=0.95, epsilon=1e-10, weight_decay=0.1)

    actual = trained(lambda groups: build.build_muon(groups, options), torch.float64)

    assert_close(actual[2:], plain_adamw(adamw)[2:])


def test_muon_leaves_groups_with_a_rate_of_their_own_to_adamw() -> None:
    adamw = of.PagedAdamWOptions(lr=0.03, beta2=0.95, epsilon=1e-10, weight_decay=0.0)

    def make(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        own = {"params": groups[0]["params"][:1], "name": "head", "lr": 0.03}
        rest = [{"params": groups[0]["params"][1:]}, groups[1]]
        return build.build_muon([own, *rest], of.MuonOptions())

    assert_close(trained(make, torch.float64)[:1], plain_adamw(adamw)[:1])


def test_soap_follows_its_paper() -> None:
    options = of.SoapOptions(lr=0.01, weight_decay=0.1, every=2)

    actual = trained(lambda groups: build.build_soap(groups, options), torch.float64, steps=6)

    assert_close(actual, plain_soap(options, 6))


def test_soap_keeps_the_coordinates_of_long_sides() -> None:
    short = of.SoapOptions(max_dimension=4)
    parameter = torch.nn.Parameter(torch.randn(3, 5, generator=torch.Generator().manual_seed(0)))
    optimizer = build.build_soap([{"params": [parameter]}], short)
    parameter.grad = parameter.detach().clone()

    optimizer.step()

    assert [len(side) for side in optimizer.state[parameter]["Q"]] == [3, 0]


@pytest.mark.parametrize(
    ("build_it", "plain", "options"),
    [
        (build.build_adamw8bit, plain_adamw, of.AdamW8bitOptions(lr=0.01, min_8bit_size=1)),
        (
            lambda g, o: PagedAdamW8bit(g, **build._adamw(o), min_8bit_size=1),
            plain_adamw,
            of.AdamW8bitOptions(lr=0.01),
        ),
        (build.build_lion8bit, plain_lion, of.Lion8bitOptions(lr=0.01, min_8bit_size=1)),
        (lambda g, o: PagedLion8bit(g, **build._lion(o), min_8bit_size=1), plain_lion, of.Lion8bitOptions(lr=0.01)),
    ],
)
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU:UserWarning")
def test_a_state_of_8_bits_comes_close(build_it: Any, plain: Any, options: Any) -> None:
    actual = trained(lambda groups: build_it(groups, options), torch.float32)

    # A step is at most about 0.01 for each weight; 8 bits keep its direction and most of its size.
    for one, other in zip(actual, plain(options), strict=True):
        assert (one.double() - other).abs().max() < 0.006


@pytest.mark.parametrize("kind", ["lion", "stable_adamw"])
def test_bf16_weights_move_by_less_than_they_can_show(kind: str) -> None:
    parameter = torch.nn.Parameter(torch.ones(64, dtype=torch.bfloat16))
    lion = of.LionOptions(lr=1e-4, weight_decay=0)
    stable = of.StableAdamWOptions(lr=1e-4, weight_decay=0)
    group = [{"params": [parameter]}]
    optimizer = build.build_lion(group, lion) if kind == "lion" else build.build_stable_adamw(group, stable)

    for _ in range(200):
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()

    # Each step is 1e-4 where the next number is 4e-3 away.
    assert parameter.float().mean().item() == pytest.approx(1 - 200 * 1e-4, abs=4e-3)


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU:UserWarning")
def test_a_restored_paged_state_lies_in_buffers_that_can_be_paged() -> None:
    class Watched(PagedAdamW):
        asked: list[torch.Size]

        def get_state_buffer(self, p: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
            self.asked.append(p.shape)
            buffer: Tensor = super().get_state_buffer(p, dtype)
            return buffer

    parameter = torch.nn.Parameter(torch.ones(3, 4))
    first, second = Watched([parameter]), Watched([parameter])
    first.asked, second.asked = [], []
    parameter.grad = torch.full_like(parameter, 0.5)
    first.step()

    second.load_state_dict(first.state_dict())

    assert second.asked == [parameter.shape, parameter.shape]
    for name in ("state1", "state2"):
        assert torch.equal(second.state[parameter][name], first.state[parameter][name])
