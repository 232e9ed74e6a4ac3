"""What commands print: tables, and the plan of a run.

Imports settings and the ground floor.
Read ``table.py`` first.
"""
