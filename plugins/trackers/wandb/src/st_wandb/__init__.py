"""Runs in Weights & Biases: metrics, settings, pictures, clips and sounds."""

from st_wandb.tracker import WandB

__all__ = ["WandB"]
