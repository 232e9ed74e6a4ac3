"""Runs in TensorBoard: metrics, settings, pictures, clips and sounds."""

from st_tensorboard.tracker import TensorBoard

__all__ = ["TensorBoard"]
