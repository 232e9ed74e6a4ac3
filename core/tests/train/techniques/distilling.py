"""A distillation in one file: a student is taught by a guided teacher and by a critic of what it draws."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

import st


class Distilling:
    """The student's answers approach the teacher's, where a network that follows the student's pictures disagrees."""

    class Options(st.Options):
        every: int = 1
        """Steps of the critic for one of the student."""
        teacher: str = "device"
        """Where the teacher stays."""
        decay: float = 0.9
        """How much the average keeps of itself."""

    def __init__(self, options: Any) -> None:
        self.options = options
        self.asked: list[float] = []

    @st.hookimpl
    def st_texts(self) -> list[str]:
        return ["", "blurry"]

    @st.hookimpl
    def st_networks(self, run: st.Run) -> list[st.Network]:
        critic = deepcopy(run.denoiser)
        return [
            st.Network("teacher", deepcopy(run.denoiser), stays=self.options.teacher),
            st.Network("critic", critic, learns=True, blocks=run.blocks),
            st.Network("average", deepcopy(run.denoiser), saved=True, blocks=run.blocks),
        ]

    @st.hookimpl
    def st_learners(self, run: st.Run) -> list[st.Learner]:
        module = run.networks["critic"].module
        return [st.Learner("critic", module, {"kind": "adamw", "lr": 1e-3}, {"kind": "constant"}, blocks=run.blocks)]

    @st.hookimpl
    def st_step(self, run: st.Run) -> st.StepWrapper:
        import torch

        def wrap(step: st.Step) -> st.Step:
            def loss(prediction: Any, noised: st.Noised, batch: st.Batch) -> st.Losses:
                with torch.no_grad():
                    wanted = run.ask(noised, batch, network="teacher")
                    against = run.ask(noised, batch, network="teacher", conditions=run.encodings["blurry"])
                    mean = run.ask(noised, batch, network="average")
                drawn = (noised.x - noised.t.view(-1, 1, 1, 1) * prediction).detach()
                again = replace(noised, x=run.family.path(noised.t).of(drawn, noised.noise), clean=drawn)
                critic = run.ask(again, batch, network="critic")
                target = run.family.target(run.family.path(again.t)).of(again.clean, again.noise)
                guided = wanted + 2 * (wanted - against)
                losses = step.loss(prediction, noised, batch)
                losses = replace(losses, steps=run.progress.step % self.options.every == 0)
                losses = losses.plus("guided", (prediction - guided).square().mean())
                losses = losses.plus("near", 0.1 * (prediction - mean).square().mean())
                return losses.teaching("critic", (critic - target).square().mean())

            return replace(step, loss=loss)

        return wrap

    @st.hookimpl
    def st_step_end(self, run: st.Run) -> None:
        import torch

        average = dict(run.networks["average"].module.named_parameters())
        with torch.no_grad():
            for name, parameter in run.denoiser.named_parameters():
                if parameter.requires_grad:
                    average[name].lerp_(parameter, 1 - self.options.decay)
