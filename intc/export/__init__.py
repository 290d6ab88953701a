"""The integer graph in other formats; so far ONNX."""
