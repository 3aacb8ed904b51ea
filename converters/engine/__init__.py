"""Portable ONNX bundle -> TensorRT engine: the tables are inputs, everything else lies in the engine."""

from .options import BuildOptions
from .stage import build_engine, check_request

__all__ = ["BuildOptions", "build_engine", "check_request"]
