"""Reproducible measurements of the project. Not part of the wheel; results are committed under benchmarks/results/<device>/."""
