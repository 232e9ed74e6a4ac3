"""Checkpoints: written atomically, verified when read, pruned by what is kept.

Imports the log and the ground floor.
Read ``vault.py`` first, then ``saver.py``.
"""
