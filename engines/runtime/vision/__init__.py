"""The images of prompts: encoded together, recognised, kept."""
