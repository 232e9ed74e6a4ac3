"""Quantizers of torchao for st."""

from st_torchao.plugin import TorchAo as TorchAo

__all__ = ["TorchAo"]
