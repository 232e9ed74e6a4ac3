"""What a run is made of once it is assembled, and what a step is made of.

Plugins read both. Lies above the report and the settings; the order of a run is in ``st.train.run``.
Read ``step.py`` first.
"""
