"""TensorRT and TensorRT-RTX: one Python API, one folder."""
