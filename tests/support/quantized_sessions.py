"""What a quantized product's input becomes, in NumPy, and a plain ONNX Runtime session of one."""

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from export.quantization.linear import FP8


def rounded_input(x, linear):
    """What the product's input becomes."""
    if linear.activations is None:
        return x
    largest = 448 if linear.precision == "fp8" else 127
    scale = (
        np.abs(x).max(-1, keepdims=True) / np.float32(largest)
        if linear.activations == "per_token"
        else np.float32(linear.activations)
    )
    normal = np.clip(x / scale, -largest - (linear.precision == "int8"), largest)
    return scale * (normal.astype(FP8).astype(np.float32) if linear.precision == "fp8" else np.rint(normal))


def session(model, directory, level="1"):
    ir.save(model, directory / "model.onnx")
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(directory / "optimized.onnx")
    options.log_severity_level = 3  # it warns of the optimized file
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", level)
    return ort.InferenceSession(directory / "model.onnx", options)
