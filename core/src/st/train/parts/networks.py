"""Network: a network beside the denoiser, such as a teacher, and asking it, or the denoiser, inside of a step."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch

from st.errors import StError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor, nn

    from st.diffusion.objective import Batch, Noised
    from st.model.inside.stream import BlockGroup
    from st.train.parts.run import Run

    Conditions = Mapping[str, Tensor]
    AskedT = TypeVar("AskedT", Noised, Batch)
    Predict = Callable[[nn.Module, Noised, Batch], Tensor]

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CPU = torch.device("cpu")


@dataclass(slots=True)
class Network:
    """A network beside the denoiser: a teacher, an average of the student, a judge of pictures.

    module: its weights are the same on every rank. learns: whether a ``Learner`` has it; where none does it is frozen
    and in eval mode. stays: on the device; on the host, where it is asked, too; or swapped, on the host but while it is
    in use. saved: whether checkpoints hold its weights, for those that change without a learner. blocks: what an engine
    that splits weights takes one by one. predict: how ``run.ask`` asks it, with an answer like ``noised.x``; as the
    family asks its denoiser where None.
    """

    name: str
    module: nn.Module
    learns: bool = False
    stays: Literal["device", "host", "swapped"] = "device"
    saved: bool = False
    blocks: Sequence[BlockGroup] = ()
    predict: Predict | None = None
    _users: int = field(default=0, init=False)

    @property
    def used(self) -> bool:
        """Whether it is where it can be asked."""
        return self.stays != "swapped" or self._users > 0

    @contextmanager
    def in_use(self, device: torch.device) -> Iterator[nn.Module]:
        """The module, on the device where it is swapped. Where gradients flow through it, backward belongs inside too:
        enter it in ``Step.scope``.
        """
        if self.stays == "swapped" and not self._users:
            self.module.to(device)
        self._users += 1
        try:
            yield self.module
        finally:
            self._users -= 1
            if self.stays == "swapped" and not self._users:
                self.module.to(CPU)

    def describe(self) -> str:
        """One sentence for the report."""
        weights = sum(parameter.numel() for parameter in self.module.parameters())
        does = "learns" if self.learns else "is frozen"
        where = {"device": "on the device", "host": "on the host", "swapped": "on the host but while it is in use"}
        kept = ", saved with checkpoints" if self.saved or self.learns else ""
        return f"network {self.name!r}: {weights:,} weights, {does}, {where[self.stays]}{kept}"


def computing(run: Run) -> AbstractContextManager[Any]:
    """The precision that predictions are made in: autocast for bf16 and fp16, nothing for fp32."""
    dtype = PRECISIONS[run.config.precision]
    if dtype == torch.float32:
        return nullcontext()
    # Its cache would keep a copy in this precision of every weight that learns until the prediction is made.
    return torch.autocast(run.device.type, dtype, cache_enabled=False)


def ask(run: Run, noised: Noised, batch: Batch, conditions: Conditions | None, network: str | None) -> Tensor:
    """What ``Run.ask`` promises."""
    if conditions is not None:
        batch = replace(batch, conditions=_for_each(conditions, len(batch.keys)))
    if network is None:
        with computing(run):
            return run.adapter.predict(run.family, run.denoiser, noised, batch)
    if network not in run.networks:
        known = ", ".join(sorted(run.networks)) or "none"
        raise StError(f"there is no network {network!r} to ask", why=f"plugins of this run bring: {known}")
    asked = run.networks[network]
    if torch.is_grad_enabled() and not asked.used:
        raise StError(
            f"network {network!r} is asked for gradients, and would be gone when backward needs it",
            fix="ask it under torch.no_grad(), or enter its in_use(run.device) in Step.scope",
        )
    predict = asked.predict or run.family.predict
    with asked.in_use(run.device) as module:
        if asked.stays == "host":
            return predict(module, *_moved(noised, batch, CPU)).to(run.device)
        with computing(run):
            return predict(module, noised, batch)


def _for_each(conditions: Conditions, count: int) -> Conditions:
    """Conditions of one caption, (1, ...), are those of every sample."""
    return {name: one.expand(count, *one.shape[1:]) if len(one) == 1 else one for name, one in conditions.items()}


def _moved(noised: Noised, batch: Batch, device: torch.device) -> tuple[Noised, Batch]:
    return _elsewhere(noised, device), _elsewhere(batch, device)


def _elsewhere(one: AskedT, device: torch.device) -> AskedT:
    """The same dataclass with its tensors, and those of its mappings, on a device."""

    def moved(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(device)
        if isinstance(value, Mapping):
            return {name: moved(each) for name, each in value.items()}
        return value

    return replace(one, **{field.name: moved(getattr(one, field.name)) for field in fields(one)})
