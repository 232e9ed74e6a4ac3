"""From gradients to new weights: optimizers, schedules, groups, moving average.

Imports ranks and the ground floor.
Read ``optimizer.py`` first.
"""
