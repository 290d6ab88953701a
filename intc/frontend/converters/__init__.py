"""ONNX operators as nodes of the float graph: a file for each kind, all listed in `registry.py`."""
