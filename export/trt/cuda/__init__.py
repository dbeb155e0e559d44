"""Reach CUDA through whichever package talks to it, and prove that a GPU can be used."""
