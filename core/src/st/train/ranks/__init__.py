"""Processes and devices: one verb each for shard, backward, step, gather and save.

Imports blocks and the ground floor; the only room that knows about processes.
Read ``ranks.py`` first.
"""
