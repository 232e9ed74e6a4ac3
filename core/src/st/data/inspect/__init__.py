"""Looking at data without training: checks, contact sheets, captions that are too long.

Imports everything of ``st.data``, and the report.
Read ``checking.py`` first.
"""
