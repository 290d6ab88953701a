"""ONNX to the canonical float graph."""
