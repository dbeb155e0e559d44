"""Write self-attention into ONNX graphs."""
