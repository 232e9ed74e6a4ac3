"""The engines: DeepSpeed's ZeRO optimizers around the run's own denoiser and optimizer."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from st import StError
from st.train.ranks.gathering import whole_weights
from st.train.ranks.gradients import Norms
from st.train.ranks.group import Group

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor, nn
    from torch.optim import Optimizer

    from st.model.inside.blocks import BlockGroup
    from st.train.ranks.gradients import ClipOptions
    from st.train.ranks.ranks import RanksOptions
    from st_deepspeed.plugin import DeepSpeedOptions


@dataclass(frozen=True, slots=True)
class Fragment:
    """What this rank steps of one parameter: ``count`` weights from ``start`` on, which begin at ``at`` in ``flat``.

    flat: the 1-D master weights that the optimizer has in place of a group's parameters.
    """

    flat: Tensor
    at: int
    start: int
    count: int

    def of(self, whole: Tensor) -> Tensor:
        """This rank's part of a tensor that lies as the parameter does, 1-D."""
        return whole.flatten()[self.start : self.start + self.count]

    def within(self, flat: Tensor) -> Tensor:
        """This parameter's part of a tensor that lies as ``flat`` does, 1-D, over the same memory."""
        return flat[self.at : self.at + self.count]


class Zero(Group):
    """ZeRO: each rank steps a part of the weights and has the optimizer's state of that part only.

    The denoiser is asked directly and the run's own optimizer steps, on parts that DeepSpeed hands it; DeepSpeed
    reduces gradients, clips them and sends the new weights around. Checkpoints are ours, of whole tensors.
    """

    gathers = True
    trains_several = False
    stage: int

    def __init__(self, device: torch.device, options: RanksOptions, settings: DeepSpeedOptions, deepspeed: Any) -> None:
        super().__init__(device, options)
        self.settings, self._deepspeed = settings, deepspeed
        self._groups: list[list[nn.Parameter]] = []
        self._engine: Any = None

    def describe(self) -> str:
        beside = "" if self.settings.offload == "none" else f", {self.settings.offload} offloaded"
        name = f"zero{self.stage}, {self.size} ranks, {self.backend} on {self.device.type}"
        return f"{name}, deepspeed {self._deepspeed.__version__}{beside}"

    def shard(self, denoiser: nn.Module, blocks: Sequence[BlockGroup]) -> nn.Module:
        """Only makes weights equal: DeepSpeed splits them together with the optimizer, in ``adopt``."""
        self.broadcast([parameter for parameter in denoiser.parameters() if parameter.requires_grad])
        return denoiser

    def adopt(
        self,
        denoiser: nn.Module,
        optimizer: Optimizer,
        clip: ClipOptions,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        assert scaler is None, "fp16 is refused where weights are split"
        self._groups = [list(group["params"]) for group in optimizer.param_groups]
        self._refuse_unfit(denoiser)
        with self._waiting("the splitting of weights"):
            self._engine, *_ = self._deepspeed.initialize(
                model=denoiser, optimizer=optimizer, config=self._config(clip), dist_init_required=False
            )
            dist.barrier()

    def backward(self, loss: Tensor, parameters: Sequence[Tensor] | None = None, *, again: bool = False) -> None:
        assert parameters is None and not again, "further learners are refused"
        engine = self._engine
        engine.optimizer.clear_backward_seen_flag()
        # DeepSpeed begins a backward pass at the outputs of its own forward, which no one calls here: the loss may also
        # come by the heads of techniques, and by several predictions. So it begins at the loss.
        loss.register_hook(lambda _: engine._backward_prologue())  # type: ignore[no-untyped-call]
        with self._waiting("the gradients of a backward pass"):
            engine.backward(loss, scale_wrt_gas=False)

    def synchronise(self, parameters: Sequence[Tensor]) -> None:
        raise AssertionError("gradients are averaged in backward, and only DeepSpeed has them")

    def step(self, optimizer: Optimizer, parameters: Sequence[Tensor], options: ClipOptions) -> Norms:
        with self._waiting("an optimizer step"):
            self._engine.step()
        norm = self._engine.get_global_grad_norm()
        return Norms(torch.as_tensor(norm, dtype=torch.float32, device=self.device))

    def groups(self, optimizer: Optimizer) -> list[dict[str, Any]]:
        found = zip(optimizer.param_groups, self._groups, strict=True)
        return [{**group, "params": parameters} for group, parameters in found]

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        groups, state, index = [], {}, 0
        for number, group in enumerate(self.groups(optimizer)):
            groups.append({**group, "params": list(range(index, index + len(group["params"])))})
            for parameter in group["params"]:
                if values := self._gathered(optimizer, self._fragment(parameter, number), parameter):
                    state[index] = values
                index += 1
        return {"state": state, "param_groups": groups}

    def load_optimizer_state(self, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
        index = 0
        for number, (group, mine) in enumerate(zip(optimizer.param_groups, self._groups, strict=True)):
            stored = state["param_groups"][number]
            group |= {name: value for name, value in stored.items() if name != "params"}
            for parameter in mine:
                fragment = self._fragment(parameter, number)
                _restore(optimizer.state[fragment.flat], fragment, state["state"].get(index, {}), _shape(parameter))
                index += 1

    def close(self, *, clean: bool) -> None:
        if self._engine is not None:
            self._engine.destroy()
        super().close(clean=clean)

    def _fragment(self, parameter: nn.Parameter, group: int) -> Fragment:
        """This rank's share of a parameter in the optimizer's group of that number."""
        raise NotImplementedError

    def _gathered(self, optimizer: Optimizer, fragment: Fragment, parameter: nn.Parameter) -> dict[str, Any]:
        """What the optimizer remembers of a parameter, whole."""
        found = {}
        for name, value in optimizer.state.get(fragment.flat, {}).items():
            split = isinstance(value, torch.Tensor) and value.shape == fragment.flat.shape and name != "step"
            part = fragment.within(value) if split else None
            found[name] = value if part is None else self._assembled(part, fragment.start, _shape(parameter))
        return found

    def _assembled(self, part: Tensor, start: int, shape: torch.Size) -> Tensor:
        """The whole of which each rank has a part, (count,), that begins at ``start``. In memory of the host."""
        whole = torch.zeros(shape.numel(), dtype=part.dtype, device=self.device)
        whole[start : start + part.numel()] = part.detach().to(self.device)
        with self._waiting("the gathering of weights"):
            dist.all_reduce(whole)
        return whole.view(shape).cpu() if self.main else whole.new_empty(0)

    def _refuse_unfit(self, denoiser: nn.Module) -> None:
        other = {parameter.dtype for group in self._groups for parameter in group} - {torch.float32}
        if other:
            raise StError(
                f"ranks.engine = 'zero{self.stage}' trains weights in fp32, and these are {next(iter(other))}",
                why="it steps fp32 copies of them, which no checkpoint of ours would hold",
                fix="set adapter.dtype to 'fp32', or ranks.engine to 'fsdp'",
            )

    def _config(self, clip: ClipOptions) -> dict[str, Any]:
        offload = self.settings.offload
        zero: dict[str, Any] = {
            "stage": self.stage,
            "reduce_bucket_size": self.settings.bucket,
            "allgather_bucket_size": self.settings.bucket,
            # Weights that stay whole between passes would be stale when the moving average takes their place.
            "stage3_param_persistence_threshold": 0,
            # It computes its backward outside of autocast, so that bf16 gradients are further off (docs/processes.md).
            "memory_efficient_linear": False,
        }
        if offload != "none":
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": self.device.type != "cpu"}
        if offload == "all":
            zero["offload_param"] = {"device": "cpu", "pin_memory": self.device.type != "cpu"}
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            # Every step() ends an accumulation of however many backward passes there were.
            "managed_gradient_accumulation": False,
            "gradient_clipping": clip.norm,
            "zero_allow_untested_optimizer": True,
            # The run's optimizer steps on the host as well: DeepSpeed's own is compiled at the first use, for a minute.
            "zero_force_ds_cpu_optimizer": False,
            "zero_optimization": zero,
        }


class Zero2(Zero):
    """ZeRO-2: gradients and the optimizer's state are split, weights are whole on every rank."""

    stage = 2

    def _fragment(self, parameter: nn.Parameter, group: int) -> Fragment:
        flat: Tensor = self._engine.optimizer.single_partition_of_fp32_groups[group]
        mapping: Any = parameter._hp_mapping  # type: ignore[attr-defined]
        if mapping is None:
            return Fragment(flat, 0, 0, 0)
        whole, mine = mapping.lp_fragment_address, mapping.hp_fragment_address
        return Fragment(flat, mine.start, whole.start, whole.numel)


class Zero3(Zero):
    """ZeRO-3: weights are split too, and fetched where a module computes."""

    stage = 3
    spreads = False

    def splits(self, parameter: Tensor) -> bool:
        return hasattr(parameter, "ds_id")

    def part(self, parameter: Tensor) -> Tensor:
        if not self.splits(parameter):
            return parameter.detach()
        held: Tensor = parameter.ds_tensor.data  # type: ignore[attr-defined]
        _, count = self._extent(parameter)
        return held[:count]

    def gather(self, part: Tensor, parameter: Tensor) -> Tensor:
        if not self.splits(parameter):
            return part
        start, _ = self._extent(parameter)
        return self._assembled(part, start, _shape(parameter))

    def cut(self, whole: Tensor, parameter: Tensor) -> Tensor:
        if not self.splits(parameter):
            return whole
        start, count = self._extent(parameter)
        return whole.flatten()[start : start + count].to(self.part(parameter).device)

    def written(self) -> None:
        self._engine.optimizer.empty_partition_cache()

    def whole(self, denoiser: nn.Module, *, frozen: bool) -> AbstractContextManager[None]:
        return whole_weights(denoiser, self, frozen=frozen)

    def _fragment(self, parameter: nn.Parameter, group: int) -> Fragment:
        zero = self._engine.optimizer
        number, at, _ = zero.grad_position[zero.get_param_id(parameter)]
        start, count = self._extent(parameter)
        return Fragment(zero.fp32_partitioned_groups_flat[number], at, start, count)

    def _extent(self, parameter: Tensor) -> tuple[int, int]:
        """(start, count) of the weights that this rank has; parts are alike but for the last, which is padded."""
        held = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        start = self.rank * held
        return start, min(held, max(0, _shape(parameter).numel() - start))

    def _refuse_unfit(self, denoiser: nn.Module) -> None:
        super()._refuse_unfit(denoiser)
        inside = set(denoiser.parameters())
        outside = sum(parameter not in inside for group in self._groups for parameter in group)
        if outside:
            raise StError(
                f"ranks.engine = 'zero3' trains the denoiser alone, and {outside} weights of techniques lie outside",
                fix="set ranks.engine to 'zero2' or 'fsdp'",
            )


def build_engine(stage: int, device: torch.device, options: RanksOptions, settings: DeepSpeedOptions) -> Zero:
    """The engine of a stage, 2 or 3. Imports DeepSpeed, told which device there is: it would guess."""
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    # It insists on one even where there is one process, whose index is then 0.
    os.environ.setdefault("LOCAL_RANK", "0")
    deepspeed: Any = import_module("deepspeed")
    # Otherwise a collective for ranks on one CPU is compiled at the first use, for more than a minute.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return {2: Zero2, 3: Zero3}[stage](device, options, settings, deepspeed)


def _shape(parameter: Tensor) -> torch.Size:
    """Of the whole parameter: what DeepSpeed has split is empty itself."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def _restore(mine: dict[str, Any], fragment: Fragment, stored: Mapping[str, Any], shape: torch.Size) -> None:
    """Put what was stored of one parameter into the state of its group's flat weights."""
    for name, value in stored.items():
        if isinstance(value, torch.Tensor) and value.shape == shape and name != "step":
            if name not in mine:
                mine[name] = torch.zeros_like(fragment.flat, requires_grad=False)
            fragment.within(mine[name]).copy_(fragment.of(value))
        else:
            mine[name] = value.clone() if isinstance(value, torch.Tensor) else value
