"""st: a trainer for diffusion models, made of plugins.

Public names are imported on first use, so that ``import st`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from st.data.backend import BACKEND as BACKEND
    from st.data.backend import DataBackend as DataBackend
    from st.data.encoder import Encoder as Encoder
    from st.data.encoder import Input as Input
    from st.data.encoder import LatentCodec as LatentCodec
    from st.data.geometry import Geometry as Geometry
    from st.data.sample import Media as Media
    from st.data.sample import Sample as Sample
    from st.data.shape.rule import GeometryRule as GeometryRule
    from st.data.source.folder import FolderBackend as FolderBackend
    from st.diffusion.density import DENSITY as DENSITY
    from st.diffusion.distance import DISTANCE as DISTANCE
    from st.diffusion.layout import Layout as Layout
    from st.diffusion.objective import Batch as Batch
    from st.diffusion.objective import Losses as Losses
    from st.diffusion.objective import Noised as Noised
    from st.diffusion.path import DiscretePath as DiscretePath
    from st.diffusion.path import Mix as Mix
    from st.diffusion.path import straight as straight
    from st.diffusion.path import unmix as unmix
    from st.diffusion.sampler import SAMPLER as SAMPLER
    from st.diffusion.shift import exponential_shift as exponential_shift
    from st.diffusion.target import epsilon as epsilon
    from st.diffusion.target import velocity as velocity
    from st.diffusion.weighting import WEIGHTING as WEIGHTING
    from st.errors import Problem as Problem
    from st.errors import SampleUnreadable as SampleUnreadable
    from st.errors import StError as StError
    from st.hookspecs import hookimpl as hookimpl
    from st.model.adapters.adapter import ADAPTER as ADAPTER
    from st.model.adapters.adapter import Adapter as Adapter
    from st.model.adapters.architecture import Architecture as Architecture
    from st.model.adapters.fused import FusedLayer as FusedLayer
    from st.model.adapters.fused import LayerTable as LayerTable
    from st.model.adapters.fused import fused_format as fused_format
    from st.model.adapters.references import References as References
    from st.model.checkpoint.checkpoint_folder import CheckpointFolder as CheckpointFolder
    from st.model.family import FAMILY as FAMILY
    from st.model.family import ModelFamily as ModelFamily
    from st.model.files.composed import reading_also as reading_also
    from st.model.files.composed import renamed_format as renamed_format
    from st.model.files.formats import AdapterFormat as AdapterFormat
    from st.model.files.formats import LoraShape as LoraShape
    from st.model.files.formats import UnknownTensors as UnknownTensors
    from st.model.files.formats import comfyui_format as comfyui_format
    from st.model.files.formats import kohya_format as kohya_format
    from st.model.files.formats import read_layout as read_layout
    from st.model.files.formats import split_key as split_key
    from st.model.files.peft_layout import diffusers_format as diffusers_format
    from st.model.files.readers import Planned as Planned
    from st.model.files.readers import Reader as Reader
    from st.model.files.update_kinds import UPDATE_KIND as UPDATE_KIND
    from st.model.files.update_kinds import UpdateKind as UpdateKind
    from st.model.inside.blocks import BlockCall as BlockCall
    from st.model.inside.blocks import BlockGroup as BlockGroup
    from st.model.inside.blocks import BlockMiddleware as BlockMiddleware
    from st.model.inside.blocks import BlockResult as BlockResult
    from st.model.inside.blocks import Claims as Claims
    from st.model.inside.blocks import Layer as Layer
    from st.model.inside.blocks import Proceed as Proceed
    from st.model.inside.blocks import TokenStream as TokenStream
    from st.model.inside.placement import Placement as Placement
    from st.model.inside.terms import ModuleTap as ModuleTap
    from st.model.inside.token_grid import token_grid as token_grid
    from st.model.pipelines.modular_family import ModularFamily as ModularFamily
    from st.model.pipelines.pipeline_codec import PipelineCodec as PipelineCodec
    from st.model.pipelines.pipeline_family import PipelineFamily as PipelineFamily
    from st.model.pipelines.pipeline_family import PipelineOptions as PipelineOptions
    from st.model.pipelines.pipeline_text import PipelineText as PipelineText
    from st.model.pipelines.pipeline_text import Prompting as Prompting
    from st.model.pipelines.text_stack import TextStack as TextStack
    from st.model.quantize.quantizer import QUANTIZER as QUANTIZER
    from st.model.quantize.quantizer import Quantizer as Quantizer
    from st.model.shot import Shot as Shot
    from st.model.streams import MakesStreams as MakesStreams
    from st.model.streams import PlacesTimes as PlacesTimes
    from st.options import Options as Options
    from st.progress import Checkpoint as Checkpoint
    from st.progress import Outcome as Outcome
    from st.progress import Progress as Progress
    from st.randomness import Draws as Draws
    from st.registrar import Registrar as Registrar
    from st.registrar import StrategyKind as StrategyKind
    from st.report.rendering.prompts import Prompt as Prompt
    from st.report.report import Report as Report
    from st.report.stats import StepStats as StepStats
    from st.report.stats import UpdateStats as UpdateStats
    from st.report.tracker import TRACKER as TRACKER
    from st.report.tracker import Picture as Picture
    from st.report.tracker import RunInfo as RunInfo
    from st.report.tracker import Tracker as Tracker
    from st.settings.config import RunConfig as RunConfig
    from st.train.beside.jobs import Jobs as Jobs
    from st.train.beside.requests import Requests as Requests
    from st.train.parts.learner import Learner as Learner
    from st.train.parts.networks import Network as Network
    from st.train.parts.run import Run as Run
    from st.train.parts.step import Step as Step
    from st.train.parts.step import StepWrapper as StepWrapper
    from st.train.ranks.ranks import ENGINE as ENGINE
    from st.train.updates.optimizer import OPTIMIZER as OPTIMIZER
    from st.train.updates.schedule import SCHEDULE as SCHEDULE
    from st.train.updates.schedule import Schedule as Schedule
    from st.train.validation.validator import VALIDATOR as VALIDATOR
    from st.train.validation.validator import Rendered as Rendered
    from st.train.validation.validator import ValidationReport as ValidationReport
    from st.train.validation.validator import Validator as Validator

API = (1, 0)
"""Version of the plugin API: the major is in the entry-point groups' names, the minor grows with every addition."""

_MODULES = {
    "st.data.backend": (
        "BACKEND",
        "DataBackend",
    ),
    "st.data.encoder": (
        "Encoder",
        "Input",
        "LatentCodec",
    ),
    "st.data.geometry": ("Geometry",),
    "st.data.sample": (
        "Media",
        "Sample",
    ),
    "st.data.shape.rule": ("GeometryRule",),
    "st.data.source.folder": ("FolderBackend",),
    "st.diffusion.density": ("DENSITY",),
    "st.diffusion.distance": ("DISTANCE",),
    "st.diffusion.layout": ("Layout",),
    "st.diffusion.objective": (
        "Batch",
        "Losses",
        "Noised",
    ),
    "st.diffusion.path": (
        "DiscretePath",
        "Mix",
        "straight",
        "unmix",
    ),
    "st.diffusion.sampler": ("SAMPLER",),
    "st.diffusion.shift": ("exponential_shift",),
    "st.diffusion.target": (
        "epsilon",
        "velocity",
    ),
    "st.diffusion.weighting": ("WEIGHTING",),
    "st.errors": (
        "Problem",
        "SampleUnreadable",
        "StError",
    ),
    "st.hookspecs": ("hookimpl",),
    "st.model.adapters.adapter": (
        "ADAPTER",
        "Adapter",
    ),
    "st.model.adapters.architecture": ("Architecture",),
    "st.model.adapters.fused": (
        "FusedLayer",
        "LayerTable",
        "fused_format",
    ),
    "st.model.adapters.references": ("References",),
    "st.model.checkpoint.checkpoint_folder": ("CheckpointFolder",),
    "st.model.family": (
        "FAMILY",
        "ModelFamily",
    ),
    "st.model.files.composed": (
        "reading_also",
        "renamed_format",
    ),
    "st.model.files.formats": (
        "AdapterFormat",
        "LoraShape",
        "UnknownTensors",
        "comfyui_format",
        "kohya_format",
        "read_layout",
        "split_key",
    ),
    "st.model.files.peft_layout": ("diffusers_format",),
    "st.model.files.readers": (
        "Planned",
        "Reader",
    ),
    "st.model.files.update_kinds": (
        "UPDATE_KIND",
        "UpdateKind",
    ),
    "st.model.inside.blocks": (
        "BlockCall",
        "BlockGroup",
        "BlockMiddleware",
        "BlockResult",
        "Claims",
        "Layer",
        "Proceed",
        "TokenStream",
    ),
    "st.model.inside.placement": ("Placement",),
    "st.model.inside.terms": ("ModuleTap",),
    "st.model.inside.token_grid": ("token_grid",),
    "st.model.pipelines.modular_family": ("ModularFamily",),
    "st.model.pipelines.pipeline_codec": ("PipelineCodec",),
    "st.model.pipelines.pipeline_family": (
        "PipelineFamily",
        "PipelineOptions",
    ),
    "st.model.pipelines.pipeline_text": (
        "PipelineText",
        "Prompting",
    ),
    "st.model.pipelines.text_stack": ("TextStack",),
    "st.model.quantize.quantizer": (
        "QUANTIZER",
        "Quantizer",
    ),
    "st.model.shot": ("Shot",),
    "st.model.streams": (
        "MakesStreams",
        "PlacesTimes",
    ),
    "st.options": ("Options",),
    "st.progress": (
        "Checkpoint",
        "Outcome",
        "Progress",
    ),
    "st.randomness": ("Draws",),
    "st.registrar": (
        "Registrar",
        "StrategyKind",
    ),
    "st.report.rendering.prompts": ("Prompt",),
    "st.report.report": ("Report",),
    "st.report.stats": (
        "StepStats",
        "UpdateStats",
    ),
    "st.report.tracker": (
        "Picture",
        "RunInfo",
        "TRACKER",
        "Tracker",
    ),
    "st.settings.config": ("RunConfig",),
    "st.train.beside.jobs": ("Jobs",),
    "st.train.beside.requests": ("Requests",),
    "st.train.parts.learner": ("Learner",),
    "st.train.parts.networks": ("Network",),
    "st.train.parts.run": ("Run",),
    "st.train.parts.step": (
        "Step",
        "StepWrapper",
    ),
    "st.train.ranks.ranks": ("ENGINE",),
    "st.train.updates.optimizer": ("OPTIMIZER",),
    "st.train.updates.schedule": (
        "SCHEDULE",
        "Schedule",
    ),
    "st.train.validation.validator": (
        "Rendered",
        "VALIDATOR",
        "ValidationReport",
        "Validator",
    ),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted([*_HOME, "API"])


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'st' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
