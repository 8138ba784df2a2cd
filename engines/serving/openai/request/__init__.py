"""What a chat completion request may ask, and what its fields mean to the runtime."""
