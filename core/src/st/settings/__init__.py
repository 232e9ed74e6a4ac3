"""Everything a run file says, typed, checked against itself, and turned back into words and schemas.

Imports the options of every room below it.
Read ``config.py`` first, then ``assembly.py``.
"""
