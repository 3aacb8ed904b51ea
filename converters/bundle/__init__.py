"""Exported model -> deployable bundle: what a C++ program, ONNX Runtime GenAI or Triton needs, in one directory."""

from .check import check_bundle
from .stage import make_bundle

__all__ = ["check_bundle", "make_bundle"]
