"""Pictures, videos and chat messages to the tensors of the contract: NumPy, Pillow and PyAV, never torch."""
