"""What learns in a run and what stands beside it: learners and networks that plugins bring, made ready.

Imports plugins, parts, ranks, updates and saving.
Read ``learners.py`` first.
"""
