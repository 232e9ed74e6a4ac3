"""Experts: two denoisers, one for much noise and one for little, and which of them is asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from st.diffusion.shift import shift
from st.errors import StError
from st.randomness import keyed
from st_wan.flavours import HIGH, LOW

if TYPE_CHECKING:
    from st.diffusion.density import Density
    from st.randomness import Draws

ATTEMPTS = 256


class Experts(nn.Module):
    """Both denoisers, under the names of ``MODULES``."""

    def __init__(self, high: nn.Module, low: nn.Module) -> None:
        super().__init__()
        self.high_noise, self.low_noise = high, low

    def forward(self) -> None:
        raise NotImplementedError("one of the two is asked")


@dataclass(frozen=True, slots=True)
class Question:
    """What a denoiser is asked: (B, ...) each. time: (B,), or (B, S) for a time of each token, up to 1000."""

    x: Tensor
    time: Tensor
    text: Tensor
    image: Tensor | None = None
    control: Tensor | None = None

    def put_to(self, denoiser: nn.Module) -> Tensor:
        """The answer, like the latents."""
        dtype = patch_weight(denoiser).dtype
        given: dict[str, Any] = {}
        if self.control is not None:
            given["control_hidden_states"] = self.control.to(dtype)
        if self.image is not None:
            given["encoder_hidden_states_image"] = self.image.to(dtype)
        answer: Tensor = denoiser(
            hidden_states=self.x.to(dtype),
            timestep=self.time,
            encoder_hidden_states=self.text.to(dtype),
            return_dict=False,
            **given,
        )[0]
        return answer

    def rows(self, wanted: Tensor) -> Question:
        """The question of some samples."""
        image = None if self.image is None else self.image[wanted]
        control = None if self.control is None else self.control[wanted]
        return Question(self.x[wanted], self.time[wanted], self.text[wanted], image, control)


def patch_weight(denoiser: nn.Module) -> Tensor:
    """A weight that has the denoiser's own type and device: its first ones are float32 whatever it computes in."""
    weight: Tensor = denoiser.get_submodule("patch_embedding").weight  # type: ignore[assignment]
    return weight


def answer_by_expert(question: Question, high: Tensor, pick: Any) -> Tensor:
    """Each sample's answer from its own expert. high: (B,) bool. pick: from HIGH or LOW to the denoiser."""
    noisy = high.tolist()
    if all(noisy) or not any(noisy):
        return question.put_to(pick(HIGH if noisy[0] else LOW))
    above, below = high.nonzero()[:, 0], (~high).nonzero()[:, 0]
    answers = [question.rows(which).put_to(pick(name)) for name, which in ((HIGH, above), (LOW, below))]
    return torch.cat(answers)[torch.argsort(torch.cat([above, below]))]


@dataclass(frozen=True, slots=True)
class Within:
    """Another density, of the times after the shift ``k`` that ``takes`` accepts: what falls outside is drawn again."""

    inner: Density
    takes: Any
    k: float = 1.0
    shifted: ClassVar[bool] = False

    def shifted_by(self, k: float) -> Within:
        return replace(self, k=k)

    def __call__(self, draws: Draws) -> Tensor:
        import torch

        found, open_rows = torch.zeros(len(draws.indices)), list(range(len(draws.indices)))
        for again in _redraws(draws):
            subset = replace(again, indices=tuple(draws.indices[row] for row in open_rows))
            t = self.inner(subset)
            t = shift(t, self.k) if self.inner.shifted else t
            for row, time, good in zip(tuple(open_rows), t, self.takes(t).tolist(), strict=True):
                if good:
                    found[row] = time
                    open_rows.remove(row)
            if not open_rows:
                return draws.tensor(found.tolist())
        raise StError(
            f"[density] gives none of {ATTEMPTS} times to the expert that is trained",
            fix="choose another density, or the other expert",
        )


def _redraws(draws: Draws) -> Iterator[Draws]:
    """The same draws first, on the CPU, then others that depend on nothing else."""
    cpu = replace(draws, device=torch.device("cpu"))
    for attempt in range(ATTEMPTS):
        yield cpu if attempt == 0 else replace(cpu, seed=keyed(draws.seed, attempt, "expert"))
