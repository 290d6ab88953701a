"""ONNX import."""

from intc.frontend.importer import import_onnx

__all__ = ["import_onnx"]
