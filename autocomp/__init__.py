"""Compress a trained network for a device: search sparsity, rank and bits per layer against measured latency."""
