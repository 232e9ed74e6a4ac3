"""SOAP with a state that is laid out in memory as it is when it is restored."""

from __future__ import annotations

from typing import Any

import torch
from pytorch_optimizer import SOAP


class RestorableSoap(SOAP):
    """pytorch-optimizer's SOAP, which goes on bit for bit after its state was saved.

    torch's decompositions give their matrices by columns. A checkpoint holds them by rows, and a product of matrices
    that lie otherwise in memory is another number in the last bits.
    """

    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, **settings)
        self.register_step_post_hook(_lay_out)


def _lay_out(optimizer: torch.optim.Optimizer, arguments: object, keywords: object) -> None:
    for state in optimizer.state.values():
        state["Q"] = [q.contiguous() if isinstance(q, torch.Tensor) else q for q in state["Q"]]
        state["exp_avg_sq"] = state["exp_avg_sq"].contiguous()
