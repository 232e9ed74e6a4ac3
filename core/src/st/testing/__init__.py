"""The conformance kit: every plugin passes it by subclassing.

``pytest -p st.testing.fixtures`` adds the fixtures ``run_file``, ``st_cli`` and ``tiny_run``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from st.testing.backends import DataBackendTests as DataBackendTests
    from st.testing.commands import CommandTests as CommandTests
    from st.testing.declared import not_applicable as not_applicable
    from st.testing.examples import example_batch as example_batch
    from st.testing.examples import example_noised as example_noised
    from st.testing.family import ModelFamilyTests as ModelFamilyTests
    from st.testing.family.run_files import RunFileTests as RunFileTests
    from st.testing.family.upstream import PipelineFamilyTests as PipelineFamilyTests
    from st.testing.hooks import HookPluginTests as HookPluginTests
    from st.testing.hooks import ValidatorTests as ValidatorTests
    from st.testing.middleware import BlockMiddlewareTests as BlockMiddlewareTests
    from st.testing.placements import PlacementTests as PlacementTests
    from st.testing.quantizers import QuantizerTests as QuantizerTests
    from st.testing.runs import CliResult as CliResult
    from st.testing.runs import TinyRun as TinyRun
    from st.testing.runs import TinyRunner as TinyRunner
    from st.testing.subjects.duo import TinyDuo as TinyDuo
    from st.testing.subjects.edit import TinyEdit as TinyEdit
    from st.testing.subjects.judge import Judge as Judge
    from st.testing.subjects.tiny import TinyFamily as TinyFamily
    from st.testing.trackers import TrackerTests as TrackerTests
    from st.testing.updates import OptimizerTests as OptimizerTests
    from st.testing.updates import ScheduleTests as ScheduleTests

_HOME = {
    "BlockMiddlewareTests": "st.testing.middleware",
    "CliResult": "st.testing.runs",
    "CommandTests": "st.testing.commands",
    "DataBackendTests": "st.testing.backends",
    "HookPluginTests": "st.testing.hooks",
    "Judge": "st.testing.subjects.judge",
    "ModelFamilyTests": "st.testing.family",
    "OptimizerTests": "st.testing.updates",
    "PipelineFamilyTests": "st.testing.family.upstream",
    "PlacementTests": "st.testing.placements",
    "QuantizerTests": "st.testing.quantizers",
    "RunFileTests": "st.testing.family.run_files",
    "ScheduleTests": "st.testing.updates",
    "TinyDuo": "st.testing.subjects.duo",
    "TinyEdit": "st.testing.subjects.edit",
    "TinyFamily": "st.testing.subjects.tiny",
    "TinyRun": "st.testing.runs",
    "TinyRunner": "st.testing.runs",
    "TrackerTests": "st.testing.trackers",
    "ValidatorTests": "st.testing.hooks",
    "example_batch": "st.testing.examples",
    "example_noised": "st.testing.examples",
    "not_applicable": "st.testing.declared",
}

__all__ = sorted(_HOME)

# Before any of them is imported, so that a failing claim shows its values.
pytest.register_assert_rewrite(*sorted({*_HOME.values(), "st.testing.plugins"}))


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'st.testing' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
