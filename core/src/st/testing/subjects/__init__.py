"""Families that are made to need something: several streams, encoders of references.

They import what a family may import. Start with ``duo.py``.
"""
