"""Compute networks in torch: blocks, the supernet, gradients."""
