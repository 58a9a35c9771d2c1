"""Tests of autocomp.jobs."""
