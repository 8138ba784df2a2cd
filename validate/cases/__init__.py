"""What is asked: built-in cases, case files, prompts as tensors."""
