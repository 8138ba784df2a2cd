"""The PyTorch reference, one precision above the engine or on a device."""
