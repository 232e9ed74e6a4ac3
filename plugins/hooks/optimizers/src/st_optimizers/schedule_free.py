"""Schedule-free AdamW, whose averaged weights are shown and saved while the trained ones stay exact."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from schedulefree import AdamWScheduleFree  # type: ignore[import-untyped]


class ScheduleFreeAdamW(AdamWScheduleFree):  # type: ignore[misc]
    """schedulefree's AdamWScheduleFree; the model holds the weights y that gradients are computed at."""

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """The averaged weights x in the model for the length of a ``with``; y return bit for bit.

        The package's own way back computes y from x again, which is another number in the last bits.
        """
        parameters = [p for group in self.param_groups for p in group["params"]]
        trained = [p.detach().clone() for p in parameters]
        self.eval()
        try:
            yield
        finally:
            self.train()
            with torch.no_grad():
                torch._foreach_copy_(parameters, trained)
