"""Bytes by key: a folder, a bucket, a repository, with atomic writes and checked copies.

Imports only the ground floor.
Read ``store.py`` first.
"""
