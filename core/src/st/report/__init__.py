"""What a run says of itself: events, metrics, progress, and the trackers that are told.

Imports the page and the rooms below it; training reports to it and it never asks back.
Read ``report.py`` first.
"""
