"""Answers as they grow, in the words of OpenAI's API."""
