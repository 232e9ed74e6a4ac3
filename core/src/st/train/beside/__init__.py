"""Beside the loop: what a run is told while it trains, by signals, a file and plugins, and work done meanwhile.

Imports the report and the ground floor; knows ranks only as who agrees.
Read ``requests.py`` first, then ``listening.py``.
"""
