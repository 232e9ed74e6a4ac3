"""Frozen weights made small, and restored for each product.

Imports adapters and families.
Read ``quantizer.py`` for the contract, ``quantized.py`` for the layer.
"""
