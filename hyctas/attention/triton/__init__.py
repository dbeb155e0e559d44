"""Compute self-attention in Triton, and hold the kernels to what can be known without a GPU."""
