"""What can be checked of the TensorRT plugins on any machine: `python -m tools.check_tensorrt`."""
