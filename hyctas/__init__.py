"""HyCTAS: hybrid convolution-transformer architecture search for real-time segmentation (arXiv 2403.10413)."""

__version__ = "0.1.0"
