"""Measuring on a board that is reached over ssh."""
