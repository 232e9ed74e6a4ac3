"""HookPluginTests and ValidatorTests: what every plugin with hooks, and every validator that one brings, promises."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING, ClassVar

from st.testing.plugins import PluginTests

if TYPE_CHECKING:
    from st.testing.runs import TinyRun, TinyRunner


class HookPluginTests(PluginTests):
    """settings: the plugin's section of a run file, where the defaults do not do for a model of three small blocks."""

    settings: ClassVar[str] = ""

    def test_it_implements_a_hook(self) -> None:
        from st.plugins.loading import hook_arguments

        cls = self._class()

        assert [name for name in hook_arguments() if hasattr(cls, name)] != []

    def test_it_takes_part_in_a_run(self, tiny_run: TinyRunner) -> None:
        run = tiny_run(plugins=[self.plugin], text=self.settings)

        assert run.outcome == "finished"

    def test_the_same_run_twice_ends_with_the_same_weights(self, tiny_run: TinyRunner) -> None:
        first = tiny_run(plugins=[self.plugin], text=self.settings)
        second = tiny_run(plugins=[self.plugin], text=self.settings)

        assert first.weights() == second.weights()

    def test_a_resumed_run_ends_with_the_same_weights(self, tiny_run: TinyRunner) -> None:
        straight = tiny_run(plugins=[self.plugin], text=self.settings, steps=4)
        first = tiny_run(plugins=[self.plugin], text=self.settings, steps=2)
        resumed = tiny_run(plugins=[self.plugin], text=self.settings, steps=4, resume=first)

        assert resumed.weights() == straight.weights()

    def test_a_resumed_run_has_the_same_state(self, tiny_run: TinyRunner) -> None:
        straight = tiny_run(plugins=[self.plugin], text=self.settings, steps=4)
        first = tiny_run(plugins=[self.plugin], text=self.settings, steps=2)
        resumed = tiny_run(plugins=[self.plugin], text=self.settings, steps=4, resume=first)

        assert resumed.state() == straight.state()


PICTURES = """
[validation]
every = 2
prompts = ["a red square", "a tree"]
resolutions = ["64"]
steps = 2
guidance = 1.0
"""


class ValidatorTests(PluginTests):
    """kind: what run files call the validator. settings: further lines of its ``[[validator]]``, where it needs any.

    more: sections of the run file that it needs, such as the plugin's own.
    """

    kind: ClassVar[str]
    settings: ClassVar[str] = ""
    more: ClassVar[str] = ""

    def test_it_measures_before_the_first_step_and_when_it_is_due(self, tiny_run: TinyRunner) -> None:
        run = self.run(tiny_run, steps=3)

        found = self.found(run)
        assert run.outcome == "finished"
        assert found, "it measured nothing"
        assert all(len(values) == 3 for values in found.values()), "before step 1, after step 2, and at the end"
        assert all(isfinite(value) for values in found.values() for value in values)

    def test_it_measures_the_same_of_the_same(self, tiny_run: TinyRunner) -> None:
        assert self.found(self.run(tiny_run)) == self.found(self.run(tiny_run))

    def test_training_is_as_it_is_without_it(self, tiny_run: TinyRunner) -> None:
        without = tiny_run(plugins=[self.plugin], text=f"{PICTURES}{self.more}", steps=2)

        assert self.run(tiny_run).weights() == without.weights()

    def test_its_metrics_can_choose_the_best_checkpoint(self, tiny_run: TinyRunner) -> None:
        import json

        metric = next(iter(self.found(self.run(tiny_run))))

        run = self.run(tiny_run, f'[checkpoint]\nevery = 1\nbest = "{metric}"')

        assert json.loads((run.directory / "checkpoints" / "best.json").read_text())["step"] == 2

    def run(self, tiny_run: TinyRunner, text: str = "", steps: int = 2) -> TinyRun:
        """A run that renders two pictures and asks the validator, every other step."""
        table = f'[[validator]]\nkind = "{self.kind}"\nevery = 2\n{self.settings}\n'
        return tiny_run(plugins=[self.plugin], text=f"{PICTURES}\n{table}{self.more}\n{text}", steps=steps)

    def found(self, run: TinyRun) -> dict[str, list[float]]:
        """What it measured, by metric."""
        return {name: values for name, values in run.metrics().items() if name.startswith(f"{self.kind}/")}
