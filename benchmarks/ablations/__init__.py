"""Answer questions of the paper, one table each: `python -m benchmarks.ablations NAME`."""
