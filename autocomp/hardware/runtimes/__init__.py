"""Runtimes that can run an exported file, one file each."""
