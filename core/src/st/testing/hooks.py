"""HookPluginTests: what every plugin with hooks promises."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from st.testing.plugins import PluginTests

if TYPE_CHECKING:
    from st.testing.runs import TinyRunner


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
