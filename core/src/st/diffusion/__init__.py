"""The mathematics of diffusion: paths, targets, times, weights, distances and the objective they make.

Imports no other room, and torch for annotations only where that is possible.
Read ``path.py`` and ``target.py`` first, then ``objective.py``.
"""
