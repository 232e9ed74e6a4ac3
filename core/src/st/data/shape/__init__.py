"""Which size and which length each sample gets, and which samples share a batch.

Imports the nouns of ``st.data`` only; works on columns of sizes, never on pixels.
Read ``rule.py`` first, then ``fitting.py``.
"""
