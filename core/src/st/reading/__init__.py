"""From a run file, ``--set`` and the environment to values with the place where each was written.

Imports only the ground floor; knows no section.
Read ``runfile.py`` first.
"""
