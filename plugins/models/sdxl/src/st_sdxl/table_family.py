"""TableFamily: a family that removes noise by a table of times, and what its denoiser is taught to say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from st import Problem, hookimpl
from st.diffusion.path import unmix
from st.diffusion.target import epsilon, v, velocity
from st.model.pipelines.pipeline_family import PipelineFamily
from st_sdxl.checkpoint import check_schedule
from st_sdxl.table_options import TableOptions

if TYPE_CHECKING:
    from torch import Tensor

    from st import Geometry, Noised
    from st.diffusion.path import DiscretePath
    from st.settings.config import RunConfig

T = TypeVar("T", bound=TableOptions)


class TableFamily(PipelineFamily[T]):
    """A denoiser that is told an index of the table, and says the noise, or v."""

    path: DiscretePath

    def __init__(self, options: T) -> None:
        super().__init__(options)
        self.says = v if options.says == "v" else epsilon
        self.path = options.path()
        self.target = velocity if options.flow else self.says
        self.defaults = {"density": options.density()} if options.density() else {}

    @hookimpl
    def st_check(self, config: RunConfig) -> Iterable[Problem]:
        """What cannot go with a stage: its times are a density's, and another density or a shift would move them."""
        wanted = self.options.density()
        if not wanted:
            return
        section = f"model.stage = {self.options.learnt!r}"
        chosen = {"kind": config.density.kind, **config.density.options.model_dump()}
        if any(chosen.get(name) != value for name, value in wanted.items()):
            yield Problem("density", f"[density] takes the place of {section}.", fix="Delete one of the two.")
        if config.shift.kind == "static":
            yield Problem("shift", f"[shift] moves times out of {section}.", fix="Delete one of the two.")

    def schedule_settings(self) -> Mapping[str, Any]:
        return self.options.scheduler()

    def render_arguments(self, geometry: Geometry) -> Mapping[str, Any]:
        return {"guidance_rescale": 0.7} if self.options.zero_terminal_snr else {}

    def check(self) -> None:
        super().check()
        self.check_denoiser()
        check_schedule(self.folder, self.options)

    def check_denoiser(self) -> None:
        """Raises StError where the denoiser is another family's, or another flavour's."""

    def meant(self, answer: Tensor, noised: Noised) -> Tensor:
        """What is scored of the denoiser's answer: itself, or the velocity that it means."""
        if not self.options.flow:
            return answer
        here = self.path(noised.t)
        clean, noise = unmix(noised.x, here, answer.float(), self.says(here))
        return self.target(here).of(clean, noise)
