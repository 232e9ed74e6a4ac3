"""PluginTests: what every plugin promises, whatever its kind."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, ClassVar

from st.plugins.checking import HEAVY
from st.testing.declared import Conformance

if TYPE_CHECKING:
    from st.plugins.catalogue import Installed


def heavy_imports_of(code: str) -> list[str]:
    """Which of torch, numpy and the like a new interpreter has imported after running ``code``."""
    program = f"import sys\n{code}\nprint('heavy:', *(name for name in {HEAVY!r} if name in sys.modules))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.rpartition("heavy:")[2].split()


def loaded(plugin: str) -> tuple[Installed, type]:
    """A plugin's class, by the name of its entry point or as ``file.py:Class``."""
    from st.plugins.catalogue import Catalogue
    from st.plugins.loading import is_local, load, load_local

    if is_local(plugin):
        return load_local(plugin)
    installed = Catalogue.scan().find(plugin)
    return installed, load(installed)


class PluginTests(Conformance):
    """plugin: what run files call it: the name of its entry point, whose package is installed, or ``file.py:Class``."""

    plugin: ClassVar[str]

    def test_import_stays_light(self) -> None:
        assert heavy_imports_of(f"from st.plugins.checking import check; check({self.plugin!r})") == []

    def test_class_is_what_every_plugin_is(self) -> None:
        from st.plugins.loading import check_class

        check_class(*self._loaded())

    def test_every_option_is_documented(self) -> None:
        undocumented = [
            name
            for name, field in self._class().Options.model_fields.items()
            if not (field.description or "").strip().endswith(".")
        ]

        assert undocumented == [], "each option needs a docstring under it that ends with a period"

    def test_options_have_defaults_or_say_what_to_set(self) -> None:
        fields = self._class().Options.model_fields

        assert [name for name, field in fields.items() if field.is_required() and not field.description] == []

    def _installed(self) -> Installed:
        return self._loaded()[0]

    def _class(self) -> Any:
        return self._loaded()[1]

    def _loaded(self) -> tuple[Installed, type]:
        return loaded(self.plugin)
