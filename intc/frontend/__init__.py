"""ONNX import."""

from intc.frontend.importer import import_onnx
from intc.frontend.tabulated import LONGEST

__all__ = ["LONGEST", "import_onnx"]
