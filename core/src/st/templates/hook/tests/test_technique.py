"""The technique keeps the promises of every plugin with hooks, and its own."""

from st.testing import HookPluginTests, TinyRunner

from PACKAGE import CLASS


class TestConformance(HookPluginTests):
    plugin = "PLUGIN"
    cls = CLASS


def test_weight_zero_changes_nothing(tiny_run: TinyRunner) -> None:
    plain = tiny_run()
    weightless = tiny_run(plugins=["PLUGIN"], text="[PLUGIN]\nweight = 0.0")

    assert weightless.weights() == plain.weights()


def test_the_term_is_logged(tiny_run: TinyRunner) -> None:
    assert "term/PLUGIN" in tiny_run(plugins=["PLUGIN"]).metrics()
