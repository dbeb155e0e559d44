"""Write, read and change ONNX graphs: standard operators only, static shapes."""
