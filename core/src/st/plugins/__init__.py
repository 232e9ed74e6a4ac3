"""How a package that is named becomes active: found, imported, checked, made and asked.

Imports the contracts of families, backends and trackers; only ``builtin.py`` names what comes with the core.
Read ``catalogue.py`` first, then ``activation.py``.
"""
