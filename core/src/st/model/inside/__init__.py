"""Reaching into a denoiser without changing it: blocks, middleware around them, recomputation, compilation.

Imports only the ground floor.
Read ``blocks.py`` first.
"""
