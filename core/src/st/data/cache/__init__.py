"""What frozen networks say of samples, computed once and found again by content.

Imports prepared data sets and stores; knows encoders only by their contract.
Read ``cache.py`` for what is kept, ``encoding.py`` for how it is filled.
"""
