"""Conversations to token ids, and answers back to what they located."""
