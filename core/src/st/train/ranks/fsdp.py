"""The engine ``fsdp``: every rank holds a part of each weight, by torch's own fully sharded data parallel (FSDP2)."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

from st.model.inside.blocks import find_blocks
from st.train.ranks.gathering import whole_weights
from st.train.ranks.gradients import clip_gradients, norm_of_each
from st.train.ranks.group import Group

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor
    from torch.optim import Optimizer

    from st.model.inside.blocks import BlockGroup
    from st.train.ranks.gradients import ClipOptions, Norms
    from st.train.ranks.ranks import RanksOptions


@dataclass(frozen=True, slots=True)
class _Adopted:
    """An optimizer's parameters as it was built with them, by group, and what it steps in place of split ones."""

    groups: list[list[Tensor]]
    stepped: dict[DTensor, nn.Parameter]


class Fsdp(Group):
    """Weights, gradients and optimizer state in parts; a block's weights are whole while it computes.

    Each block is a unit, what lies outside of blocks another. Everything is sharded again after each pass, the root
    too: weights that stay whole after a pass without gradients would be stale in the next one. Gradients are reduced
    in every backward, in fp32 where the weights are. The optimizer steps plain tensors, this rank's parts: not every
    kernel of one is there for torch's distributed tensors (fused SGD is not, in 2.13).
    """

    spreads = False
    gathers = True
    takes_from_host = True

    def __init__(self, device: torch.device, options: RanksOptions) -> None:
        super().__init__(device, options)
        self._mesh = init_device_mesh(device.type, (self.size,))
        self._adopted: dict[Optimizer, _Adopted] = {}

    def describe(self) -> str:
        return f"fsdp, {self.size} ranks, {self.backend} on {self.device.type}"

    def shard(self, denoiser: nn.Module, blocks: Sequence[BlockGroup]) -> nn.Module:
        for module in (*(block for block, _ in find_blocks(denoiser, blocks)), denoiser):
            self._split(module, denoiser)
        return denoiser

    def _split(self, unit: nn.Module, denoiser: nn.Module) -> None:
        """Bring what of this module is not split yet onto the device, and let go of all but this rank's part."""
        whole = [tensor for tensor in (*unit.parameters(), *unit.buffers()) if not isinstance(tensor, DTensor)]
        for tensor in whole:
            tensor.data = tensor.data.to(self.device)
        self.broadcast([tensor for tensor in whole if tensor.requires_grad])
        # Before the hooks of fully_shard, which hang on the output: changing a view in place would shake them off.
        unit.register_forward_hook(_without_views)
        fully_shard(unit, mesh=self._mesh, reshard_after_forward=True)
        still_whole = set(denoiser.parameters())
        for tensor in whole:
            # The parameters from before are still known to whoever built groups of them.
            if isinstance(tensor, nn.Parameter) and tensor not in still_whole:
                tensor.data = tensor.data.new_empty(0)

    def backward(self, loss: Tensor, parameters: Sequence[Tensor] | None = None, *, again: bool = False) -> None:
        # The tensors that autograd sees are the whole weights, which exist for a while only: what others get of this
        # loss is let go afterwards.
        others = {} if parameters is None else self._gradients_beside(parameters)
        for parameter in others:
            parameter.grad = None
        with self._waiting("the gradients of a backward pass"):
            loss.backward(retain_graph=again or None)  # type: ignore[no-untyped-call]
        for parameter, gradient in others.items():
            parameter.grad = gradient

    def _gradients_beside(self, parameters: Sequence[Tensor]) -> dict[Tensor, Tensor | None]:
        mine = set(parameters)
        every = (one for adopted in self._adopted.values() for group in adopted.groups for one in group)
        return {one: one.grad for one in every if one not in mine}

    def synchronise(self, parameters: Sequence[Tensor]) -> None:
        self.average_gradients([parameter for parameter in parameters if not isinstance(parameter, DTensor)])

    def adopt(
        self,
        denoiser: nn.Module,
        optimizer: Optimizer,
        clip: ClipOptions,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        assert scaler is None, "fp16 is refused where weights are split"
        groups: list[list[Tensor]] = [list(group["params"]) for group in optimizer.param_groups]
        sharded = [one for group in groups for one in group if isinstance(one, DTensor)]
        stepped = {parameter: nn.Parameter(self.part(parameter)) for parameter in sharded}
        for group, mine in zip(optimizer.param_groups, groups, strict=True):
            group["params"] = [stepped[one] if isinstance(one, DTensor) else one for one in mine]
        self._adopted[optimizer] = _Adopted(groups, stepped)

    def groups(self, optimizer: Optimizer) -> list[dict[str, Any]]:
        found = zip(optimizer.param_groups, self._adopted[optimizer].groups, strict=True)
        return [{**group, "params": parameters} for group, parameters in found]

    def step(self, optimizer: Optimizer, parameters: Sequence[Tensor], options: ClipOptions) -> Norms:
        self.synchronise(parameters)
        norms = self.clip(parameters, options)
        for parameter, part in self._adopted[optimizer].stepped.items():
            # Taken anew: fully_shard may have moved a part since, when it was first used.
            part.data = self.part(parameter)
            part.grad = parameter.grad.to_local() if isinstance(parameter.grad, DTensor) else None
            parameter.grad = None
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norms

    def clip(self, parameters: Sequence[Tensor], options: ClipOptions) -> Norms:
        reached = [parameter for parameter in parameters if parameter.grad is not None]
        gradients = [parameter.grad for parameter in reached if parameter.grad is not None]
        split = [isinstance(gradient, DTensor) for gradient in gradients]
        mine = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
        places = [place for place, parameter in enumerate(parameters) if parameter.grad is not None]

        def norms(gradients: Sequence[Tensor]) -> Tensor:
            each = norm_of_each(gradients).to(self.device)
            shared = torch.tensor(split, dtype=torch.bool, device=self.device)
            # A place for every parameter: whatever a rank's samples reached, all send the same messages.
            squares = torch.zeros(len(parameters), device=self.device)
            squares[places] = torch.where(shared, each.square(), 0.0)
            with self._waiting("the norm of gradients"):
                dist.all_reduce(squares)
            return torch.where(shared, squares[places].sqrt(), each)

        return clip_gradients(reached, mine, options, norms)

    def splits(self, parameter: Tensor) -> bool:
        return isinstance(parameter, DTensor)

    def part(self, parameter: Tensor) -> Tensor:
        if not isinstance(parameter, DTensor):
            return parameter.detach()
        with torch.no_grad():
            part: Tensor = parameter.to_local()
        return part

    def gather(self, part: Tensor, parameter: Tensor) -> Tensor:
        if not isinstance(parameter, DTensor):
            return part
        return self._full(_like(part, parameter))

    def cut(self, whole: Tensor, parameter: Tensor) -> Tensor:
        if not isinstance(parameter, DTensor):
            return whole
        placed = whole.to(parameter.device)
        # Every rank has the whole, so nothing is sent.
        return distribute_tensor(placed, parameter.device_mesh, parameter.placements, src_data_rank=None).to_local()

    @contextmanager
    def whole(self, denoiser: nn.Module, *, frozen: bool) -> Iterator[None]:
        # fully_shard makes a class of its own of every module, whose name would end up in config.json.
        classes = {module: type(module) for module in denoiser.modules() if isinstance(module, FSDPModule)}
        with whole_weights(denoiser, self, frozen=frozen):
            for module, sharded in classes.items():
                module.__class__ = sharded.__bases__[1]
            try:
                yield
            finally:
                for module, sharded in classes.items():
                    module.__class__ = sharded

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        state = optimizer.state_dict()
        parameters = [parameter for group in self._adopted[optimizer].groups for parameter in group]
        by_index = {
            index: {
                name: self.gather(value, parameters[index])
                if _lies_as(name, value, self.part(parameters[index]))
                else value
                for name, value in values.items()
            }
            for index, values in state["state"].items()
        }
        return {**state, "state": by_index}

    def load_optimizer_state(self, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
        parameters = [parameter for group in self._adopted[optimizer].groups for parameter in group]
        by_index = {
            index: {
                name: self.cut(value, parameters[index]) if _lies_as(name, value, parameters[index]) else value
                for name, value in values.items()
            }
            for index, values in state["state"].items()
        }
        optimizer.load_state_dict({**state, "state": by_index})

    def _full(self, tensor: DTensor) -> Tensor:
        """On rank 0, in memory of the host: saving costs a device no more than one whole weight. Elsewhere nothing."""
        with self._waiting("the gathering of weights"), torch.no_grad():
            full: Tensor = tensor.full_tensor()
        return full.cpu() if self.main else full.new_empty(0)


def _lies_as(name: str, value: object, parameter: Tensor) -> bool:
    """Whether what an optimizer remembers is of the parameter's shape, element by element."""
    return isinstance(value, torch.Tensor) and value.shape == parameter.shape and name != "step"


def _without_views(module: nn.Module, arguments: object, output: Any) -> Any:
    return tree_map_only(torch.Tensor, lambda one: one.clone() if one.requires_grad and one._is_view() else one, output)


def _like(part: Tensor, parameter: DTensor) -> DTensor:
    return DTensor.from_local(
        part,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
