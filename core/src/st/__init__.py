"""st: a trainer for diffusion models, made of plugins.

Public names are imported on first use, so that ``import st`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from st.data.backend import DataBackend as DataBackend
    from st.data.encoder import Encoder as Encoder
    from st.data.encoder import Input as Input
    from st.data.encoder import LatentCodec as LatentCodec
    from st.data.folder import FolderBackend as FolderBackend
    from st.data.geometry import Geometry as Geometry
    from st.data.rule import GeometryRule as GeometryRule
    from st.data.sample import Media as Media
    from st.data.sample import Sample as Sample
    from st.diffusion.objective import Batch as Batch
    from st.diffusion.objective import Losses as Losses
    from st.diffusion.objective import Noised as Noised
    from st.diffusion.path import Mix as Mix
    from st.errors import Problem as Problem
    from st.errors import SampleUnreadable as SampleUnreadable
    from st.errors import StError as StError
    from st.hookspecs import hookimpl as hookimpl
    from st.model.adapter import Adapter as Adapter
    from st.model.blocks import BlockCall as BlockCall
    from st.model.blocks import BlockGroup as BlockGroup
    from st.model.blocks import BlockMiddleware as BlockMiddleware
    from st.model.blocks import BlockResult as BlockResult
    from st.model.blocks import Claims as Claims
    from st.model.blocks import Layer as Layer
    from st.model.blocks import Proceed as Proceed
    from st.model.blocks import TokenStream as TokenStream
    from st.model.family import ModelFamily as ModelFamily
    from st.model.formats import AdapterFormat as AdapterFormat
    from st.model.formats import comfyui_format as comfyui_format
    from st.model.formats import diffusers_format as diffusers_format
    from st.model.formats import kohya_format as kohya_format
    from st.model.pipeline_family import PipelineFamily as PipelineFamily
    from st.model.quantizer import Quantizer as Quantizer
    from st.model.references import References as References
    from st.options import Options as Options
    from st.registrar import Registrar as Registrar
    from st.report.tracker import Picture as Picture
    from st.report.tracker import RunInfo as RunInfo
    from st.report.tracker import Tracker as Tracker
    from st.train.run import Checkpoint as Checkpoint
    from st.train.run import Outcome as Outcome
    from st.train.run import Run as Run
    from st.train.step import Step as Step
    from st.train.step import StepStats as StepStats
    from st.train.step import StepWrapper as StepWrapper
    from st.train.step import UpdateStats as UpdateStats

API = (1, 0)
"""Version of the plugin API: the major is in the entry-point groups' names, the minor grows with every addition."""

_MODULES = {
    "st.data.backend": ("DataBackend",),
    "st.data.encoder": ("Encoder", "Input", "LatentCodec"),
    "st.data.folder": ("FolderBackend",),
    "st.data.geometry": ("Geometry",),
    "st.data.rule": ("GeometryRule",),
    "st.data.sample": ("Media", "Sample"),
    "st.diffusion.objective": ("Batch", "Losses", "Noised"),
    "st.diffusion.path": ("Mix",),
    "st.errors": ("Problem", "SampleUnreadable", "StError"),
    "st.hookspecs": ("hookimpl",),
    "st.model.adapter": ("Adapter",),
    "st.model.blocks": (
        "BlockCall",
        "BlockGroup",
        "BlockMiddleware",
        "BlockResult",
        "Claims",
        "Layer",
        "Proceed",
        "TokenStream",
    ),
    "st.model.family": ("ModelFamily",),
    "st.model.formats": ("AdapterFormat", "comfyui_format", "diffusers_format", "kohya_format"),
    "st.model.pipeline_family": ("PipelineFamily",),
    "st.model.quantizer": ("Quantizer",),
    "st.model.references": ("References",),
    "st.options": ("Options",),
    "st.registrar": ("Registrar",),
    "st.report.tracker": ("Picture", "RunInfo", "Tracker"),
    "st.train.run": ("Checkpoint", "Outcome", "Run"),
    "st.train.step": ("Step", "StepStats", "StepWrapper", "UpdateStats"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted([*_HOME, "API"])


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'st' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
