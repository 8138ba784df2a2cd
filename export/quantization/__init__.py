"""Weights in few bits: what they mean, how a bundle stores them, and the layouts of checkpoints that hold them."""
