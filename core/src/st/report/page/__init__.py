"""report.html: one file, no server, made from the event log and the samples folder.

Imports the log and the files.
Read ``page.py`` first.
"""
