"""Adapter files: layouts that other programs read, and what can be computed with files alone.

Imports only the ground floor.
Read ``formats.py`` first.
"""
