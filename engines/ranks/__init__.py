"""One model in several processes: a leader that asks, and the ranks that compute."""
