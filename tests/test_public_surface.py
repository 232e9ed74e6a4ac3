"""What others rely on, written down: a change of it is a decision, and is seen here.

Adding a name, a hook or an argument raises the minor version of the API; taking one away is possible with a new major
only. Either needs a changelog fragment.
"""

from __future__ import annotations

from typing import Any

import pytest

import st

PUBLIC_NAMES = """
ADAPTER API Adapter AdapterFormat Architecture BACKEND Batch BlockCall BlockGroup BlockMiddleware BlockResult
Checkpoint CheckpointFolder Claims DENSITY DISTANCE DataBackend DiscretePath Draws ENGINE Encoder FAMILY FolderBackend
FusedLayer Geometry GeometryRule Input Jobs LatentCodec Layer LayerTable Layout Learner LoraShape Losses MakesStreams
Media Mix ModelFamily ModularFamily ModuleTap Network Noised OPTIMIZER Options Outcome Picture PipelineCodec
PipelineFamily PipelineOptions PipelineText Placement PlacesTimes Planned Problem Proceed Progress Prompt Prompting
QUANTIZER Quantizer Reader References Registrar Rendered Report Requests Run RunConfig RunInfo SAMPLER SCHEDULE Sample
SampleUnreadable Schedule Shot StError Step StepStats StepWrapper StrategyKind TRACKER TextStack TokenStream Tracker
UPDATE_KIND UnknownTensors UpdateKind UpdateStats VALIDATOR ValidationReport Validator WEIGHTING comfyui_format
diffusers_format epsilon exponential_shift fused_format hookimpl kohya_format read_layout reading_also renamed_format
split_key straight token_grid unmix velocity
"""

TESTING_NAMES = """
BlockMiddlewareTests CliResult CommandTests DataBackendTests HookPluginTests Judge ModelFamilyTests OptimizerTests
PipelineFamilyTests PlacementTests QuantizerTests RunFileTests ScheduleTests TinyDuo TinyEdit TinyFamily TinyRun
TinyRunner TrackerTests ValidatorTests example_batch example_noised not_applicable
"""

HOOKS = {
    "st_register": "register",
    "st_check": "config family",
    "st_report_opened": "report",
    "st_sample_transform": "dataset",
    "st_encoders": "config family",
    "st_texts": "config family",
    "st_placement": "config family",
    "st_objective": "run objective",
    "st_denoiser_loaded": "run",
    "st_networks": "run",
    "st_block_middleware": "run",
    "st_parameters": "run",
    "st_learners": "run",
    "st_step": "run",
    "st_step_end": "run stats",
    "st_checkpoint_saved": "run checkpoint",
    "st_exported": "run files",
    "st_run_end": "run outcome",
}

COMMANDS = {
    "ctl": "RUN DO SETTING --json --wait",
    "train": "FILE --accept --dry-run --output --plugins --resume --set",
    "config show": "FILE --origin --plugins --set",
    "plugins": "",
    "plugins check": "NAME",
    "plugins why": "NAME",
    "data check": "FILE --all --plugins --ranks --set",
    "data show": "FILE --output --per-bucket --plugins --set",
    "cache du": "FILE --plugins --set",
    "cache verify": "FILE --plugins --set",
    "cache prune": "FILE --dry-run --plugins --set --unused",
    "cache explain": "FILE SAMPLE --plugins --set",
    "sample": (
        "RUN --checkpoint --fact --guidance --negative --out --prompt --reference --seconds --seed --size --steps "
        "--trust"
    ),
    "adapter inspect": "FILE --plugins",
    "adapter convert": "FILE OUT --plugins --set --to",
    "adapter merge": "FILES OUT --plugins --weights",
    "adapter resize": "FILE OUT --rank",
    "adapter diff": "FIRST SECOND",
    "adapter extract": "BASE TRAINED --dtype --energy --format --output --plugins --rank --set --target",
    "tiny": "FAMILY DIRECTORY",
    "new": "KIND NAME DIRECTORY",
    "reference options": "NAMES",
    "reference hooks": "",
    "reference nouns": "MODULES",
    "reference schema": "FILE --plugins",
    "reference blocks": "FILES --write",
}
"""Positional arguments in capitals, in their order, then options."""

STRATEGY_KINDS = """
adapter backend density distance engine family optimizer quantizer sampler schedule tracker update_kind validator
weighting
"""


def test_public_names() -> None:
    assert st.__all__ == PUBLIC_NAMES.split()
    assert st.API == (1, 0)


def test_every_public_name_can_be_imported() -> None:
    assert [name for name in st.__all__ if not hasattr(st, name)] == []


def test_names_of_the_test_kit() -> None:
    import st.testing

    assert st.testing.__all__ == TESTING_NAMES.split()
    assert [name for name in st.testing.__all__ if not hasattr(st.testing, name)] == []


def test_hooks_and_their_arguments() -> None:
    from st.plugins.loading import hook_arguments

    assert {name: " ".join(arguments) for name, arguments in hook_arguments().items()} == HOOKS


def test_kinds_of_strategies() -> None:
    kinds = [value.name for name in st.__all__ if isinstance(value := getattr(st, name), st.StrategyKind)]

    assert sorted(kinds) == STRATEGY_KINDS.split()


def test_commands_and_their_options() -> None:
    from st.cli import HELP, _load

    found: dict[str, str] = {}
    for name in HELP:
        collect(name, _load(name), found)

    assert found == COMMANDS


def collect(path: str, command: Any, found: dict[str, str]) -> None:
    """What a command and those below it take, by path."""
    if not hasattr(command, "commands") or command.invoke_without_command:
        options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
        arguments = [parameter.name.upper() for parameter in command.params if parameter not in options]
        names = sorted(max(option.opts, key=len) for option in options if "--help" not in option.opts)
        found[path] = " ".join([*arguments, *names])
    for name, below in getattr(command, "commands", {}).items():
        collect(f"{path} {name}", below, found)


@pytest.mark.parametrize("group", ["models", "backends", "trackers", "hooks", "commands"])
def test_entry_point_groups_carry_the_major_version(group: str) -> None:
    from st.plugins.catalogue import KINDS

    assert group in KINDS
    assert st.API[0] == 1
