"""What a checkpoint says and holds: its path, its configurations, its tensors."""
