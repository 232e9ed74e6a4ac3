"""LyCORIS for st: adapters that change a layer's weights by Kronecker and Hadamard products, rotations and the like."""

from st_lycoris.adapter import LycorisAdapter as LycorisAdapter
from st_lycoris.options import Algorithm as Algorithm
from st_lycoris.options import LycorisOptions as LycorisOptions
from st_lycoris.plugin import Lycoris as Lycoris

__all__ = ["Algorithm", "Lycoris", "LycorisAdapter", "LycorisOptions"]
