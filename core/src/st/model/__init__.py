"""Denoisers: families, the part that learns, and the block layout through which techniques reach inside."""
