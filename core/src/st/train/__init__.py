"""A run, from settings to the saved adapter.

Imports everything but the command line.
Read ``run.py`` first, then ``loop.py``.
"""
