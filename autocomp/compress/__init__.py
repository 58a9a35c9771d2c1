"""Compression: pure functions from a model and a plan to a new model. Knows nothing of hardware or search."""
