"""Running artifacts: ONNX Runtime, TensorRT, plugin discovery, generation."""
