"""Speed, as ratios against peers that run interleaved on the same arrays: ``python -m benchmarks``."""
