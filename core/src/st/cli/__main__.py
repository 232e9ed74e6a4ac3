"""``python -m st.cli`` is ``st``: launchers start processes by module name."""

from st.cli import main

main()
