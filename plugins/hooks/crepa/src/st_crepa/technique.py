"""Crepa: tokens of one block learn to agree with features of their own and neighbouring frames."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from st import Problem, StError, hookimpl
from st.errors import ProblemsFound
from st_crepa.options import CrepaOptions
from st_crepa.tap import TERM, Tap

if TYPE_CHECKING:
    from torch import Tensor, nn

    from st import Batch, Encoder, Losses, ModelFamily, Noised, Run, Step, StepStats, StepWrapper
    from st.settings.config import RunConfig
    from st_crepa.alignment import Projector
    from st_crepa.encoder import FrameFeatures


class Crepa:
    """Align what a denoiser computes with what a vision encoder sees, so that it learns to draw sooner.

    REPA (Yu et al. 2024, arXiv:2410.06940) on pictures, CREPA (Hwang et al. 2025, arXiv:2506.09229) on clips.
    """

    Options: ClassVar[type[CrepaOptions]] = CrepaOptions

    def __init__(self, options: CrepaOptions) -> None:
        self.options = options
        self._features: FrameFeatures | None = None
        self._widths: dict[int, int] = {}
        self._tap = Tap((), ())
        self._projector: Projector | None = None
        self._similarities: list[Tensor] = []
        self._similarity: float | None = None
        self._reached = False
        self._told = False

    @hookimpl
    def st_check(self, config: RunConfig) -> Iterable[Problem]:
        from st_crepa.encoder import location_problem

        problem = location_problem(self.options.model) if self.options.feature_source == "encoder" else None
        return [problem] if problem else []

    @hookimpl
    def st_encoders(self, config: RunConfig, family: ModelFamily[Any]) -> Sequence[Encoder] | None:
        from st_crepa.encoder import FrameFeatures

        if "pixels" not in family.codec().reads:
            raise StError(f"crepa aligns pictures and clips, and {type(family).__name__} learns sound")
        if self.options.feature_source == "backbone":
            return None
        self._features = FrameFeatures(self.options, family.geometry)
        assert self._features.edge, "asked for, so that a wrong size stops the run before anything is loaded"
        return [self._features]

    @hookimpl
    def st_denoiser_loaded(self, run: Run) -> None:
        """Before an adapter adds layers of other widths."""
        from st.model.inside.blocks import find_blocks

        blocks = find_blocks(run.denoiser, run.blocks)
        inside = [index for index in self._blocks(len(blocks)) if 0 <= index < len(blocks)]
        # The width that the user gives is the first one's.
        self._widths = {index: token_width(blocks[index][0]) for index in inside[1 if self.options.width else 0 :]}

    @hookimpl
    def st_block_middleware(self, run: Run) -> Tap:
        blocks = self._blocks(run.num_blocks)
        if len(blocks) == 2 and blocks[1] <= blocks[0]:
            what = f"crepa.teacher_block_index is block {blocks[1]}, and crepa.block_index block {blocks[0]}."
            fix = "Set the teacher to a later block."
            raise ProblemsFound([Problem("crepa.teacher_block_index", what, fix=fix)])
        self._tap = Tap(blocks, ("block_index", "teacher_block_index")[: len(blocks)])
        return self._tap

    @hookimpl
    def st_parameters(self, run: Run) -> Iterable[dict[str, Any]]:
        from st.randomness import keyed
        from st_crepa.alignment import Projector

        student, *teacher = self._tap.blocks
        width = self.options.width or self._widths[student]
        if self._features is not None:
            features, source = self._features.width, f"the features of {self.options.model!r}"
        else:
            features, source = self._widths[teacher[0]], f"those after block {teacher[0]}"
        kernel, seed = self.options.projector_kernel_size, keyed(run.config.seed, 0, "crepa/projector")
        self._projector = Projector(width, features, kernel, seed).to(run.device)
        parameters = list(self._projector.parameters())
        count = sum(parameter.numel() for parameter in parameters)
        text = f"tokens after block {student} of 0-{run.num_blocks - 1} learn to agree with {source}"
        run.report.note(f"{text}; their projector has {count:,} weights", kind="crepa")
        return [{"params": parameters, "name": "crepa"}]

    @hookimpl
    def st_step(self, run: Run) -> StepWrapper:
        def wrap(step: Step) -> Step:
            read: dict[int, list[Tensor]] = {}

            def predict(noised: Noised, batch: Batch) -> Tensor:
                if self._weight(run) is None:
                    return step.predict(noised, batch)
                with run.reading() as found:
                    prediction = step.predict(noised, batch)
                read.update(found.get(TERM, {}))
                return prediction

            def loss(prediction: Tensor, noised: Noised, batch: Batch) -> Losses:
                losses, weight = step.loss(prediction, noised, batch), self._weight(run)
                if weight is None:
                    return losses
                # The first prediction of a step, where a technique inside of this one asks again.
                taken = {index: tokens[0] for index, tokens in read.items()}
                read.clear()
                return losses.plus("crepa", weight * self._alignment(run, batch, taken))

            return replace(step, predict=predict, loss=loss)

        return wrap

    @hookimpl
    def st_step_end(self, run: Run, stats: StepStats) -> None:
        """The moving average of the similarity, where it decides something; the same on every rank."""
        import torch

        if not self._similarities:
            return
        found = float(run.ranks.mean(torch.stack(self._similarities).mean()[None]))
        self._similarities = []
        decay, step = self.options.similarity_ema_decay, run.progress.step
        self._similarity = found if self._similarity is None else decay * self._similarity + (1 - decay) * found
        if not step % run.config.report.every:
            run.report.metrics(step, {"crepa/similarity": self._similarity})
        threshold = self.options.similarity_threshold
        assert threshold is not None, "similarities are gathered for it"
        reached = self._similarity >= threshold
        if reached is not self._reached:
            self._reached = reached
            happens = "is off" if reached else "is back"
            run.report.note(f"crepa {happens}: similarity {self._similarity:.4f}, threshold {threshold}", kind="crepa")

    def state_dict(self) -> dict[str, Any]:
        """The projector and whether the similarity was reached."""
        assert self._projector is not None, "asked for once training is set up"
        projector = {name: tensor.detach() for name, tensor in self._projector.state_dict().items()}
        return {"projector": projector, "similarity": self._similarity, "reached": self._reached}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave, exactly."""
        assert self._projector is not None, "asked for once training is set up"
        self._projector.load_state_dict(state["projector"])
        self._similarity, self._reached = state["similarity"], state["reached"]

    def _blocks(self, count: int) -> list[int]:
        """The student, and the teacher where there is one; they may lie outside of the denoiser."""
        asked = (self.options.block_index, self.options.teacher_block_index)
        return [index + count if index < 0 else index for index in asked if index is not None]

    def _weight(self, run: Run) -> float | None:
        """None where alignment is over for good. A weight of 0 still measures, and leaves optimizers no difference
        between one rank and several."""
        weight = self.options.weight_at(run.progress.step, run.total_steps)
        if weight is None or not self._reached:
            return weight
        return None if self.options.threshold_mode == "permanent" else 0.0

    def _alignment(self, run: Run, batch: Batch, taken: Mapping[int, Tensor]) -> Tensor:
        import torch

        from st_crepa.alignment import align, as_grid
        from st_crepa.encoder import NAME

        assert taken, "no block was read in this step's prediction"
        count = run.family.tokens(batch.latents)
        student, *teacher = (as_grid(taken[index], batch.latents, count) for index in self._tap.blocks)
        self._check_width(student.shape[-1])
        # Outside of the precision that predictions are made in.
        with torch.autocast(run.device.type, enabled=False):
            assert self._projector is not None, "parameters were asked for"
            projected = self._projector(student)
            features = teacher[0].detach() if teacher else batch.extras[NAME]
            found = align(projected, features, self.options)
        if self.options.similarity_threshold is not None:
            self._similarities.append(found.similarity)
        if student.shape[1] == 1 and self.options.neighbours_asked_for and not self._told:
            self._told = True
            run.report.note(
                "crepa: pictures have no neighbouring frames; they are aligned with themselves", kind="crepa"
            )
        return found.loss

    def _check_width(self, width: int) -> None:
        assert self._projector is not None, "parameters were asked for"
        (expected,) = self._projector.norm.normalized_shape
        if width != expected:
            raise StError(
                f"the projector takes tokens of width {expected}; after block {self._tap.blocks[0]} they have {width}",
                fix=f"set crepa.width to {width}",
            )


def token_width(block: nn.Module) -> int:
    """The width of a block's tokens: what most of its linear layers take or give."""
    widths: Counter[int] = Counter()
    for module in block.modules():
        for name in ("in_features", "out_features"):
            width = getattr(module, name, None)
            if isinstance(width, int):
                widths[width] += 1
    if not widths:
        raise StError(f"crepa finds no linear layer in a {type(block).__name__}", fix="set crepa.width")
    return widths.most_common(1)[0][0]
