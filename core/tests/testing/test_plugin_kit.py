"""Plugins of one file pass the kit, and the built-in backend does."""

from pathlib import Path

import pytest

from st.data.source.folder import FolderBackend, FolderOptions
from st.plugins.loading import load_local
from st.testing import DataBackendTests, HookPluginTests, TrackerTests, not_applicable
from st.testing.runs import write_photos

PLUGINS = Path(__file__).with_name("plugins")
TECHNIQUES = Path(__file__).parents[1] / "train" / "techniques"
QUIET = f"{PLUGINS / 'quiet_tracker.py'}:QuietTracker"


class TestQuietTracker(TrackerTests):
    plugin = QUIET

    @pytest.fixture
    def tracker(self) -> object:
        cls = load_local(QUIET)[1]
        return cls(cls.Options())


class TestDrift(HookPluginTests):
    plugin = f"{PLUGINS / 'drift.py'}:Drift"


class TestDistilling(HookPluginTests):
    plugin = f"{TECHNIQUES / 'distilling.py'}:Distilling"


class TestGates(HookPluginTests):
    plugin = f"{TECHNIQUES / 'gates.py'}:Gates"


class TestSwapping(HookPluginTests):
    plugin = f"{TECHNIQUES / 'swapping.py'}:Swapping"


class TestFolderBackend(DataBackendTests):
    test_import_stays_light = not_applicable("it is not a package of its own")
    test_class_is_what_every_plugin_is = not_applicable("it is not a package of its own")
    test_every_option_is_documented = not_applicable("it is not a package of its own")
    test_options_have_defaults_or_say_what_to_set = not_applicable("it is not a package of its own")

    @pytest.fixture
    def backend(self, tmp_path: Path) -> FolderBackend:
        return FolderBackend(str(write_photos(tmp_path / "photos")), FolderOptions())
