"""The event log that is always on, and how times are written.

Imports only the ground floor.
Read ``events.py`` first.
"""
