"""From prepared sets and the cache to batches, in an order that can be saved and resumed.

Imports sets and the cache.
Read ``plan.py`` first, then ``loader.py``.
"""
