"""The tensors of one quantized layer in each tool's layout, and what they mean."""
