"""Canonical checkpoint -> ONNX bundle: a graph built from the model description over the checkpoint's own bytes."""

from .bundle import export_onnx
from .model import TARGETS, build_model

__all__ = ["TARGETS", "build_model", "export_onnx"]
