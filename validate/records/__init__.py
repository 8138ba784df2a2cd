"""What was answered and how far two answers are apart: metrics, records, golden sets."""
