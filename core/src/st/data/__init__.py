"""What a data set is made of: samples, their sizes, where they come from and what encodes them.

The nouns lie here; the rooms below do the work, in the order store, media, shape, source, sets, cache, feed, inspect.
Read ``sample.py`` and ``backend.py`` first. Knows no model and no training.
"""
