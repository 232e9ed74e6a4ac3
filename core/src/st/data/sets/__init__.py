"""From a list of samples to a data set that can be trained on: filtered, paired, cut and bucketed.

Imports sources and shapes.
Read ``prepare.py`` first.
"""
