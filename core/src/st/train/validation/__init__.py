"""What is measured between steps: rendered prompts, held-out losses, plugins' own scores.

Imports the parts of a run and rendering; leaves training as it was.
Read ``validation.py`` first.
"""
