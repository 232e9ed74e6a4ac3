"""ControlNetAdapter: what learns is a network beside the denoiser."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st import Adapter, Problem, StError
from st.data.sample import REFERENCE
from st.model.adapters.adapter import NO_FORMATS, restore
from st.model.adapters.references import ReadsReferences, References
from st_controlnet.families import AcceptsControl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from st import Batch, ModelFamily, Noised
    from st.model.files.formats import AdapterFormat
    from st_controlnet.options import ControlNetOptions

FOLDER = "controlnet"
"""The network's name inside the denoiser, and of the folder that is written."""


class Shown(Adapter):
    """An adapter whose denoiser is shown a control picture: ``_shown`` while it predicts, None otherwise."""

    _shown: Tensor | None = None

    def predict(self, family: ModelFamily[Any], denoiser: nn.Module, noised: Noised, batch: Batch) -> Tensor:
        shown = batch.extras.get(REFERENCE)
        if shown is None:
            raise StError(
                "no control picture is given", fix="name reference_sets at each data set, references at prompts"
            )
        # What the family is to see has none: a control picture is no picture to edit.
        left = {name: one for name, one in batch.extras.items() if not name.startswith(REFERENCE)}
        self._shown = shown
        try:
            return family.predict(denoiser, noised, replace(batch, extras=left))
        finally:
            self._shown = None


class ControlNetAdapter(Shown):
    """A control network, trained beside a denoiser that stays as it is.

    Every call of the denoiser that comes with a control picture is preceded by one of the network, with the same
    arguments.
    """

    def __init__(self, options: ControlNetOptions) -> None:
        self.options = options
        self._family: Any = None
        self._network: Any = None
        self._enabled = True

    def references(self, family: ModelFamily[Any]) -> References | None:
        return References(family.control_encoder() if isinstance(family, AcceptsControl) else None, 1, 1)

    def problems(self, family: ModelFamily[Any]) -> Sequence[Problem]:
        return family_problems(family, AcceptsControl, "controlnet")

    def begin(self, family: ModelFamily[Any], denoiser: nn.Module) -> None:
        import torch

        self._family = family
        # Layers that no weight of the denoiser begins are drawn the same each time, whatever was drawn before.
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network: Any = self._family.make_control(denoiser, self.options.layers)
        if self.options.start:
            network = _opened(type(network), self.options.start)
        self._network = network

    def attach(
        self, denoiser: nn.Module, targets: Sequence[str], formats: Mapping[str, AdapterFormat] = NO_FORMATS
    ) -> Sequence[dict[str, Any]]:
        import torch

        network, like = self._network, next(denoiser.parameters())
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[self.options.dtype]
        denoiser.requires_grad_(False)
        # Not diffusers' own ``to``, which warns of layers that a class wants in float32 even where there are none.
        torch.nn.Module.to(network, like.device, dtype)
        network.requires_grad_(True).train(denoiser.training)
        if self.options.recompute:
            network.enable_gradient_checkpointing()
        denoiser.add_module(FOLDER, network)
        denoiser.register_forward_pre_hook(self._control, with_kwargs=True)
        count = sum(parameter.numel() for parameter in network.parameters())
        self.note = f"a {type(network).__name__} beside the denoiser: {count:,} weights learn"
        return [{"params": list(network.parameters()), "name": FOLDER}]

    def state(self, denoiser: nn.Module) -> Mapping[str, Tensor]:
        return dict(self._network.named_parameters(prefix=FOLDER))

    def load(self, denoiser: nn.Module, state: Mapping[str, Tensor]) -> None:
        restore(self.state(denoiser), state, "the control network")

    def export(
        self, family: ModelFamily[Any], denoiser: nn.Module, directory: Path, metadata: Mapping[str, str]
    ) -> Path:
        folder, partial = directory / FOLDER, directory / f".{FOLDER}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        self._network.save_pretrained(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        return folder

    @contextmanager
    def disabled(self, denoiser: nn.Module) -> Iterator[None]:
        self._enabled = False
        try:
            yield
        finally:
            self._enabled = True

    def _control(self, denoiser: nn.Module, args: Any, kwargs: Any) -> tuple[Any, dict[str, Any]] | None:
        if self._shown is None or not self._enabled:
            return None
        arguments = inspect.signature(denoiser.forward).bind(*args, **kwargs).arguments
        further = self._family.controlled(self._network, arguments, self._shown)
        return args, {**kwargs, **_scaled(further, self.options.strength)}


def family_problems(family: ModelFamily[Any], protocol: type, kind: str) -> Sequence[Problem]:
    """Why a family cannot be controlled in this way."""
    what = ""
    if not isinstance(family, protocol):
        what = f"{type(family).__name__} has no control network that other programs load."
    elif isinstance(family, ReadsReferences) and family.references() is not None:
        what = f"this {type(family).__name__} is shown references already, and cannot be shown control pictures too."
    if not what:
        return ()
    return (Problem("adapter.kind", f"adapter.kind = {kind!r}: {what}", fix="Choose another model or another kind."),)


def _scaled(further: Mapping[str, Any], strength: float) -> dict[str, Any]:
    def scaled(value: Any) -> Any:
        if value is None:
            return None
        return [scaled(one) for one in value] if isinstance(value, (list, tuple)) else value * strength

    return dict(further) if strength == 1 else {name: scaled(value) for name, value in further.items()}


def _opened(kind: Any, folder: str) -> Any:
    from st.model.checkpoint.networks import load_network

    if not Path(folder).is_dir():
        raise StError(
            f"adapter.start = {folder!r} is no control network of this model",
            why="there is no such folder",
            fix="name a folder with config.json and diffusion_pytorch_model.safetensors",
        )
    return load_network(kind, Path(folder), f"adapter.start = {folder!r}")
