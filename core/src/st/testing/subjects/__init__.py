"""Small complete things to test with: a family, its network and its parts.

Imports whatever a plugin of that kind may import.
Read ``tiny.py`` first.
"""
