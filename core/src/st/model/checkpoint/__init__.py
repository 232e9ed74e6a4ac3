"""Checkpoints as diffusers lays them out, on disk or on the hub, and single weights files.

Imports only the ground floor.
Read ``checkpoint_folder.py`` first.
"""
