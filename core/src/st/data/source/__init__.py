"""Where samples come from: folders and remote files, listed into a table with their captions.

Imports shapes, media and stores.
Read ``folder.py`` first, then ``scan.py`` and ``index.py``.
"""
