"""Function bodies of the ops, and the native layers of TensorRT."""
