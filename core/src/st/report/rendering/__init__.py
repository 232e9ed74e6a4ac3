"""From prompts to pixels: what is asked for, what is shown, and how it is rendered.

Imports families, data's nouns and the files.
Read ``prompts.py`` first, then ``rendering.py``.
"""
