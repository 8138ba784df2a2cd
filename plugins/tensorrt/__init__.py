"""The ops as TensorRT plugins: PTX, registration, the CUDA driver."""
