"""Families whose parts diffusers has: text, codec, denoiser and pipeline out of one checkpoint.

Imports everything else of ``st.model``.
Read ``pipeline_family.py`` first.
"""
