"""Kinds of updates that the library's files hold, computed from their tensors alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from st import UpdateKind

if TYPE_CHECKING:
    from torch import Tensor


class Kronecker(UpdateKind):
    """LoKr: w1 (x) w2, each whole or a product of two. Yeh et al. 2023, arXiv:2309.14859."""

    marks = ("lokr_w1", "lokr_w1_a", "lokr_w2", "lokr_w2_a")

    def rank(self, tensors: Mapping[str, Tensor]) -> int | None:
        found = [len(tensors[name]) for name in ("lokr_w2_b", "lokr_w1_b") if name in tensors]
        return found[0] if found else None

    def change(self, tensors: Mapping[str, Tensor]) -> Tensor:
        import torch

        if "dora_scale" in tensors:
            return super().change(tensors)
        first, second = _factor(tensors, "1"), _factor(tensors, "2")
        first = first.reshape(*first.shape, *[1] * (second.ndim - 2))
        return torch.kron(first, second.contiguous()) * _scale(tensors, self.rank(tensors))


class Hadamard(UpdateKind):
    """LoHa: the element-wise product of two products of two. Hyeon-Woo et al. 2021, arXiv:2108.06098."""

    marks = ("hada_w1_a", "hada_w2_a")

    def rank(self, tensors: Mapping[str, Tensor]) -> int | None:
        return len(tensors["hada_w1_b"])

    def change(self, tensors: Mapping[str, Tensor]) -> Tensor:
        if "dora_scale" in tensors:
            return super().change(tensors)
        halves = []
        for number in "12":
            left, right = (tensors[f"hada_w{number}_{side}"].float() for side in "ab")
            core = tensors.get(f"hada_t{number}")
            halves.append(left @ right if core is None else _rebuilt(core.float(), left, right))
        return halves[0] * halves[1] * _scale(tensors, self.rank(tensors))


class Tucker(UpdateKind):
    """LoCon whose kernel is between two matrices."""

    marks = ("lora_mid.weight",)

    def rank(self, tensors: Mapping[str, Tensor]) -> int | None:
        return len(tensors["lora_down.weight"])

    def change(self, tensors: Mapping[str, Tensor]) -> Tensor:
        if "dora_scale" in tensors:
            return super().change(tensors)
        down, up = (tensors[f"lora_{side}.weight"].float().flatten(1) for side in ("down", "up"))
        core = tensors["lora_mid.weight"].float()
        return _rebuilt(core, up.T, down) * _scale(tensors, self.rank(tensors))


class Beside(UpdateKind):
    """GLoRA: a product beside the weight and one behind it. Chavan et al. 2023, arXiv:2306.07967."""

    marks = ("a1.weight", "b1.weight")

    def rank(self, tensors: Mapping[str, Tensor]) -> int | None:
        return min(tensors["b1.weight"].shape[:2])


class Rotation(UpdateKind):
    """OFT and BOFT: outputs are rotated. Qiu et al. 2023, arXiv:2306.07280; Liu et al. 2023, arXiv:2311.06243."""

    marks = ("oft_blocks",)

    def rank(self, tensors: Mapping[str, Tensor]) -> int | None:
        return int(tensors["oft_blocks"].shape[-1])


class Scaling(UpdateKind):
    """IA3: outputs or inputs are scaled. Liu et al. 2022, arXiv:2205.05638."""

    marks = ("ia3.weight",)


class Normalisation(UpdateKind):
    """Differences of a normalisation's weight and bias."""

    marks = ("w_norm", "b_norm")

    def change(self, tensors: Mapping[str, Tensor]) -> Tensor:
        return tensors["w_norm"].float()


KINDS: Mapping[str, UpdateKind] = {
    "lokr": Kronecker(),
    "loha": Hadamard(),
    "tucker": Tucker(),
    "glora": Beside(),
    "oft": Rotation(),
    "ia3": Scaling(),
    "norm": Normalisation(),
}


def _factor(tensors: Mapping[str, Tensor], number: str) -> Tensor:
    whole = tensors.get(f"lokr_w{number}")
    if whole is not None:
        return whole.float()
    left, right = (tensors[f"lokr_w{number}_{side}"].float() for side in "ab")
    core = tensors.get(f"lokr_t{number}")
    return left @ right if core is None else _rebuilt(core.float(), left, right)


def _rebuilt(core: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """(out, in, *kernel) from a core (rank, rank, *kernel) and matrices (rank, out), (rank, in)."""
    import torch

    return torch.einsum("ij...,io,jn->on...", core, left, right)


def _scale(tensors: Mapping[str, Tensor], rank: int | None) -> float:
    """Two whole factors have no rank, and their alpha says nothing."""
    return float(tensors["alpha"]) / rank if rank and "alpha" in tensors else 1.0
