"""OpenAI's chat API over HTTP."""
