"""ControlLoraAdapter: a low-rank update of a denoiser that reads the control picture beside the noise."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from st import Problem
from st.model.adapters.adapter import NO_FORMATS
from st.model.adapters.lora import LoraAdapter
from st.model.adapters.references import References
from st_controlnet.families import WidensInput
from st_controlnet.network import Shown, family_problems

if TYPE_CHECKING:
    from torch import nn

    from st import ModelFamily
    from st.model.files.formats import AdapterFormat
    from st_controlnet.options import ControlLoraOptions


class ControlLoraAdapter(Shown, LoraAdapter):
    """The layer that reads latents reads as many channels again: those of the control picture.

    Its new weights are zero and stay so; what it learns of them is in the update, which upstream's control pipelines
    load onto a layer that they widen themselves.
    """

    options: ControlLoraOptions

    def __init__(self, options: ControlLoraOptions) -> None:
        super().__init__(options)
        self._family: Any = None
        self._input = ""

    def references(self, family: ModelFamily[Any]) -> References | None:
        return References(None, 1, 1)

    def problems(self, family: ModelFamily[Any]) -> Sequence[Problem]:
        found = [*super().problems(family), *family_problems(family, WidensInput, "control_lora")]
        for name in self.options.formats:
            if name not in {"", "diffusers"}:
                what = f"adapter.format = {name!r}: control LoRAs are read by diffusers' pipelines only."
                found.append(Problem("adapter.format", what, fix="Leave it out."))
        return found

    def begin(self, family: ModelFamily[Any], denoiser: nn.Module) -> None:
        self._family = family
        self._input = self._family.widen_input(denoiser)

    def attach(
        self, denoiser: nn.Module, targets: Sequence[str], formats: Mapping[str, AdapterFormat] = NO_FORMATS
    ) -> Sequence[dict[str, Any]]:
        chosen = (*(self.options.targets or targets), self._input)
        self.options = self.options.model_copy(update={"targets": chosen})
        denoiser.register_forward_pre_hook(self._widen, with_kwargs=True)
        return super().attach(denoiser, targets, formats)

    def _widen(self, denoiser: nn.Module, args: Any, kwargs: Any) -> tuple[Any, dict[str, Any]]:
        # A widened denoiser cannot be asked without: whoever comes past ``predict`` is shown nothing, as zeros.
        arguments = inspect.signature(denoiser.forward).bind(*args, **kwargs).arguments
        return args, {**kwargs, **self._family.widened(arguments, self._shown)}
