"""A run: its order, its loop and its checkpoints."""
