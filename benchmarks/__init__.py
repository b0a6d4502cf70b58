"""Benchmarks against other libraries, timed alternately on the same arrays: ``python -m benchmarks``."""
