"""Run: everything that is fixed once a run is assembled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st.model.inside.terms import Terms
from st.progress import Progress
from st.train.beside.requests import Requests

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from st.diffusion.objective import Batch, Noised, Objective
    from st.model.adapters.adapter import Adapter
    from st.model.family import ModelFamily
    from st.model.inside.blocks import BlockGroup
    from st.model.inside.placement import Placement
    from st.model.inside.terms import Found
    from st.randomness import Draws
    from st.report.report import Report
    from st.settings.config import RunConfig
    from st.train.beside.jobs import Jobs
    from st.train.parts.networks import Network
    from st.train.ranks.ranks import Ranks


@dataclass(frozen=True, slots=True)
class Run:
    """Everything fixed once a run is assembled. Techniques read it; none writes to it.

    total_steps: optimizer steps at which the run is finished, whether the run file gave steps or epochs. encodings:
    what the text encoders gave for each text of ``st_texts``, collated, (1, ...), on the device: conditions for
    ``ask``. networks: those of ``st_networks``, by name. placement: what brings the blocks' weights in, if anything.
    weights: a digest of the denoiser's own, as they were loaded. requests: asks the run to save, validate,
    pause, stop or change its rate. jobs: work beside the loop, such as uploads.
    """

    config: RunConfig
    directory: Path
    family: ModelFamily[Any]
    denoiser: nn.Module
    blocks: tuple[BlockGroup, ...]
    num_blocks: int
    adapter: Adapter
    objective: Objective
    ranks: Ranks
    device: torch.device
    report: Report
    draws: Callable[[Batch], Draws]
    total_steps: int
    jobs: Jobs
    weights: str = ""
    requests: Requests = field(default_factory=Requests)
    progress: Progress = field(default_factory=Progress)
    encodings: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    networks: dict[str, Network] = field(default_factory=dict)
    placement: Placement | None = None
    terms: Terms = field(default_factory=Terms)

    def ask(
        self,
        noised: Noised,
        batch: Batch,
        *,
        conditions: Mapping[str, Tensor] | None = None,
        network: str | None = None,
    ) -> Tensor:
        """The answer of the denoiser with its adapter, or of a network, as ``ModelFamily.predict`` gives it.

        As often as wanted inside of a step, in the precision of the run; gradients as torch is set. conditions: in
        place of the batch's; those of one caption are for every sample. network: of ``st_networks``, by name. Raises
        StError for a name that there is not, and for gradients through a network that would be gone by then.
        """
        from st.train.parts.networks import ask

        return ask(self, noised, batch, conditions, network)

    def reading(self) -> AbstractContextManager[Found]:
        """Inside of a ``with``, what the calls of blocks give (``BlockResult.plus``), as ``Terms.reading`` has it."""
        return self.terms.reading()
