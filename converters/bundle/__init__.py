"""Exported model -> deployable bundle: what a C++ program, ONNX Runtime GenAI or Triton needs, in one directory."""

from .check import check_bundle
from .stage import make_bundle
from .triton import make_triton

__all__ = ["check_bundle", "make_bundle", "make_triton"]
