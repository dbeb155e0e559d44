"""Run models on PyTorch, ONNX Runtime and OpenVINO behind `export.runtime`."""
