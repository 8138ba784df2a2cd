"""Qwen2-VL: how its `config.json` is read."""
