"""Samples: where they come from, which size they get, and how they become batches."""
