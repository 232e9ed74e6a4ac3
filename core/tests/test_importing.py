from __future__ import annotations

import gc
import os
import sys
import weakref
from pathlib import Path

import pytest

from st.errors import StError
from st.importing import NEW_OBJECTS, importing, needing, wait_passively
from st.installing import install_command


class Ring:
    """Garbage that only a look for cycles finds."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def new_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "brought_by_this_test.py").write_text("KEPT = []\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "brought_by_this_test", raising=False)
    return "brought_by_this_test"


def test_threshold_is_as_before_when_an_import_fails() -> None:
    before = gc.get_threshold()

    with pytest.raises(ModuleNotFoundError), importing():
        assert gc.get_threshold()[0] == NEW_OBJECTS
        __import__("no_such_module_anywhere")

    assert gc.get_threshold() == before


def test_what_came_is_not_looked_through_again(new_module: str) -> None:
    gc.unfreeze()
    try:
        with importing():
            __import__(new_module)

        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


def test_garbage_is_still_found_where_nothing_was_imported() -> None:
    gc.unfreeze()
    with importing():
        ring = Ring()
        gone = weakref.ref(ring)
        del ring

    assert gc.get_freeze_count() == 0
    gc.collect()
    assert gone() is None


def test_a_library_that_is_not_there_is_named_with_what_brings_it() -> None:
    with pytest.raises(StError) as raised, needing("no_such_library", "clips are read with it", "clips"):
        import no_such_library  # type: ignore[import-not-found]  # noqa: F401

    assert raised.value.what == "clips are read with it, which is not installed"
    assert raised.value.fix == install_command("st-core", extra="clips")


def test_what_a_library_lacks_itself_is_not_mistaken_for_it() -> None:
    with pytest.raises(ModuleNotFoundError), needing("av", "clips are read with PyAV", "clips"):
        import no_such_library  # type: ignore[import-not-found]  # noqa: F401


@pytest.mark.parametrize(
    ("device", "before", "after"),
    [("cpu", None, "PASSIVE"), ("cpu", "ACTIVE", "ACTIVE"), ("cuda", None, None), ("cuda:1", None, None)],
)
def test_threads_wait_asleep_on_a_cpu_unless_the_user_has_said_how(
    device: str, before: str | None, after: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Set first, so that what was there before the test comes back in any case.
    monkeypatch.setenv("OMP_WAIT_POLICY", before or "")
    if before is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")

    wait_passively(device)

    assert os.environ.get("OMP_WAIT_POLICY") == after
