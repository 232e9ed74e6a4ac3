"""What is looked at beside the steps: what a run is made of, and why it does not move.

Imports the parts of a run and the rooms below them.
Read ``manifest.py`` for what a resumed run compares, ``motion.py`` for gradients that are all zero.
"""
