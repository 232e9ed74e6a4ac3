"""Rendered pictures, clips and sounds, written to files that other programs open.

Imports only the ground floor.
Read ``picture_files.py`` first.
"""
