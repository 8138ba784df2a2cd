"""ONNX Runtime on an NVIDIA GPU: the cache, embeddings and logits stay on the device."""
