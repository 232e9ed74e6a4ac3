"""AdamW in bfloat16 with stochastic rounding: 6 bytes a parameter for weight and state."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from st.randomness import keyed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

CHUNK_ELEMENTS = 1 << 24
"""Elements handled at once: 64 MiB for each float32 temporary."""


def round_stochastically(values: Tensor, generator: torch.Generator) -> Tensor:
    """float32 to bfloat16, up or down with a probability that makes the mean exact.

    The lower 16 bits of the float32 are the distance to the next bfloat16: adding 16 random bits carries into the upper
    half exactly as often as that distance says. Zamirai et al. 2020, arXiv:2010.06192, section 3.
    """
    noise = torch.randint(0, 1 << 16, values.shape, generator=generator, device=values.device, dtype=torch.int32)
    bits = values.contiguous().view(torch.int32).add(noise).bitwise_and_(-65536)
    return bits.view(torch.float32).to(torch.bfloat16)


class AdamWBf16(Optimizer):
    """AdamW (arXiv:1711.05101) over bfloat16 weights; the update is computed in float32 and rounded stochastically.

    Nearest rounding would lose every update smaller than 1/256 of its weight. The rounding's random bits are keyed by
    the step count, so a resumed run repeats them. Weights that are float32, as norms of a family may be, take the same
    update and are not rounded. Raises TypeError for a parameter of any other dtype.
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "betas": betas, "epsilon": epsilon, "weight_decay": weight_decay, "step": 0}
        )
        for parameter in (p for group in self.param_groups for p in group["params"]):
            if parameter.dtype not in (torch.bfloat16, torch.float32):
                raise TypeError(f"adamw_bf16 trains bfloat16 and float32 weights, not {parameter.dtype}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step over every parameter that has a gradient."""
        assert closure is None, "adamw_bf16 takes no closure"
        for number, group in enumerate(self.param_groups):
            group["step"] += 1
            generators: dict[torch.device, torch.Generator] = {}
            for chunk in _chunks([p for p in group["params"] if p.grad is not None]):
                device = chunk[0].device
                if device not in generators:
                    seed = keyed(number, group["step"], "adamw_bf16")
                    generators[device] = torch.Generator(device).manual_seed(seed)
                self._update(chunk, group, generators[device])

    def _update(self, parameters: Sequence[Tensor], group: dict[str, Any], generator: torch.Generator) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["mean"] = torch.zeros_like(parameter)
                self.state[parameter]["square"] = torch.zeros_like(parameter)
        means = [self.state[p]["mean"] for p in parameters]
        squares = [self.state[p]["square"] for p in parameters]
        weight, mean, square = (_flat(tensors) for tensors in (parameters, means, squares))
        gradient = _flat([p.grad for p in parameters if p.grad is not None])
        beta1, beta2 = group["betas"]
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        correction = math.sqrt(1 - beta2 ** group["step"])
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        denominator = square.sqrt().div_(correction).add_(group["epsilon"])
        weight.addcdiv_(mean, denominator, value=-group["lr"] / (1 - beta1 ** group["step"]))
        for targets, values in ((parameters, weight), (means, mean), (squares, square)):
            exact = targets[0].dtype == torch.float32
            whole = values if exact else round_stochastically(values, generator)
            parts = torch.split(whole, [t.numel() for t in targets])
            torch._foreach_copy_(list(targets), [part.view_as(t) for part, t in zip(parts, targets, strict=True)])


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1).float() for t in tensors])


def _chunks(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Runs of parameters on one device, of one dtype, with at most CHUNK_ELEMENTS elements; a larger one stands
    alone."""
    chunk: list[Tensor] = []
    count = 0
    for parameter in parameters:
        unlike = chunk and (parameter.device, parameter.dtype) != (chunk[0].device, chunk[0].dtype)
        if chunk and (unlike or count + parameter.numel() > CHUNK_ELEMENTS):
            yield chunk
            chunk, count = [], 0
        chunk.append(parameter)
        count += parameter.numel()
    if chunk:
        yield chunk
