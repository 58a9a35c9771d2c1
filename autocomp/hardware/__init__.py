"""Targets, runtimes, timing and the latency model. Knows nothing of search."""
